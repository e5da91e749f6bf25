r"""The wire protocol, and the envelope, which gets exact results from python-faas and js-faas. No I/O happens here.

coze-loop's own servers, python-faas and js-faas, are called the reference servers. They change programs, and lose or
change parts of their results, as the tables below show. Unless `GET /health` reports a lossless server, such as the
embedded FaaS, a program is sent in an envelope: a small guest program that runs the user's program and returns its
results undamaged. `Settings(envelope="never")` disables the envelope, and `"always"` sends it to lossless servers too.

    program                                 sent plain to python-faas           in the envelope

    print("a"), print("b")                  stdout "ab"                         stdout "a\nb\n"
    print({"a": 1})                         an empty stdout, and {'a': 1}       stdout "{'a': 1}\n"
                                            as the return value
    a comment with don't, code,             the code between the                runs as written
    another comment with it's               apostrophes is gone
    an exception                            exit code 1, without a message      name, message, traceback with
                                                                                line numbers
    print("x", file=sys.stderr)             nothing                             stderr "x\n"
    sys.exit(3)                             no output, exit code 1,             the output, exit code 3
                                            a stack of Deno
    1 + 1 as the last line                  an error of the server              OK
    return_val("0.50")                      stdout "0.50", no return value      the return value "0.50"
    recursion to depth 900                  a RecursionError (limit 400)        runs (limit 1,000)
    while True: pass                        no answer, and one of eight         TIMEOUT, with the output
                                            workers is lost for good            until then

    program                                 sent plain to js-faas               in the envelope

    console.log({ a: 1 })                   "[object Object]"                   "{ a: 1 }"
    setTimeout(() => console.log("late"))   nothing                             "late"
    TypeScript, import, top-level await     a SyntaxError                       runs
    console.log('{"a":1}') as the last      gone from stdout: it is the         stays in stdout
    line                                    return value
    throw new Error("boom")                 a stack of "eval at <anonymous>"    "Error: boom" at main.js:1:7
    Deno.exit(3)                            an empty success                    the output, exit code 3
    setInterval(...) until the limit        an empty success                    TIMEOUT, with the output
                                                                                until then
    while (true) {} in a callback           a success that prints the           TIMEOUT
                                            server's own report
    Deno.kill(Deno.pid, "SIGKILL")          the same                            CRASHED

On other services, SandboxFusion and Piston, programs run in CPython and Node.js as on a command line. Their guest
programs differ: output of child processes is recorded too, frames are short enough for the service, and the guest
program stops a program 1 s before the service kills it, so that its output is not lost. `faasrt/docs/services.md` has
the differences, and `faasrt.protocol.interface` is the interface of protocols.

The guest program announces its start. If a reference server returns no announcement, it did not start its interpreter,
and the call raises `ServerError`.

Programs can call `return_val` on every server, with one exception: with `envelope="never"`, js-faas needs the source of
`Runtime.get_return_val_function()` before the program.

Limits of the envelope:

* The guest program stops endless Python loops itself. This has no measurable cost in CPython; in Pyodide, programs take
  up to 1.15 times as long (`benchmarks/guard.py`). It cannot interrupt a single long call of C code (a sum over an
  endless iterator, a huge power), and a hostile program can disable it. A server that does not enforce timeouts must
  then be restarted.
* A program can detect the envelope and forge its own result, but not the result of another program.
* On the reference servers, the outcome of a program that exhausts memory or kills its process is CRASHED. On js-faas
  its output is then lost. So is the output of a loop that never returns, of workers, and of `node:fs` on a descriptor.
* A top-level `await` that never settles is a TIMEOUT on the reference servers, and a USER_ERROR on the embedded FaaS.
  `import.meta.main` is always false.

Example:
    >>> settings = Settings.from_env(envelope="always")
    >>> async with RuntimeManager(settings=settings) as manager:
    ...     result = await manager.run_code("print('a'); print('b')\nraise SystemExit(3)", "python")
    >>> result.outcome, result.stdout, result.exit_code
    (<Outcome.USER_ERROR: 'USER_ERROR'>, 'a\nb\n', 3)
"""
