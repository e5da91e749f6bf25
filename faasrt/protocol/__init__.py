r"""What goes over the wire, and how exact results come back from servers that mangle them. Pure: no I/O in here.

The reference servers damage programs and results. Unless a server says in `GET /health` that it is faithful, as the
embedded FaaS does, programs travel in an envelope: a small guest program that runs them and hands everything back whole
(`faasrt.protocol.envelope` tells how). `Settings(envelope="never")` does without it, `"always"` insists on it.

    program                                 as it is, python-faas gives         in the envelope

    print("a"), print("b")                  stdout "ab"                         stdout "a\nb\n"
    print({"a": 1})                         an empty stdout, and {'a': 1}       stdout "{'a': 1}\n"
                                            as the return value
    a comment with don't, code,             the code between the                runs as written
    another comment with it's               apostrophes is gone
    an exception                            exit code 1, and not a word         name, message, traceback with
                                                                                line numbers
    print("x", file=sys.stderr)             nothing                             stderr "x\n"
    sys.exit(3)                             no output, exit code 1,             the output, exit code 3
                                            a stack of Deno's
    1 + 1 as the last line                  an error of the server's            OK
    return_val("0.50")                      stdout "0.50", no return value      the return value "0.50"
    recursion to depth 900                  a RecursionError (limit 400)        runs (limit 1,000)
    while True: pass                        no answer, and one of eight         TIMEOUT, and what was printed
                                            slots is lost for ever              before

    program                                 as it is, js-faas gives             in the envelope

    console.log({ a: 1 })                   "[object Object]"                   "{ a: 1 }"
    setTimeout(() => console.log("late"))   nothing                             "late"
    TypeScript, import, top-level await     a SyntaxError                       runs
    console.log('{"a":1}') as the last      gone from stdout: it is the         stays in stdout
    line                                    return value
    throw new Error("boom")                 a stack of "eval at <anonymous>"    "Error: boom" at main.js:1:7
    Deno.exit(3)                            an empty success                    the output, exit code 3
    setInterval(...) until the limit        an empty success                    TIMEOUT, and what was printed
                                                                                before
    while (true) {} in a callback           a success that prints the           TIMEOUT
                                            server's own report
    Deno.kill(Deno.pid, "SIGKILL")          the same                            CRASHED

The guest program announces its start. A reference server that returns no announcement did not start its interpreter:
`ServerError`.

`return_val` is defined on every server; with `envelope="never"`, js-faas needs `Runtime.get_return_val_function()` in
front of the program.

What the envelope cannot do:

* It ends Python loops from inside; that costs nothing measurable in CPython, and at most 1.15 times the time in Pyodide
  (`benchmarks/guard.py`). It cannot reach into one long call of C code (a sum over an endless iterator, a huge power),
  and hostile code can take the guard away. On a server that enforces no timeouts only a restart of it helps then.
* A program can find out that it is in an envelope, and forge its own result; no other program's.
* On the reference servers a program that exhausts memory or ends its process hard is CRASHED. On js-faas its output is
  lost then, as is the output of a loop that never returns, of workers, and of `node:fs` on a descriptor.
* A top-level `await` that never settles is a TIMEOUT there, and a USER_ERROR on the embedded FaaS. `import.meta.main`
  is false everywhere.

Example:
    >>> settings = Settings.from_env(envelope="always")
    >>> async with RuntimeManager(settings=settings) as manager:
    ...     result = await manager.run_code("print('a'); print('b')\nraise SystemExit(3)", "python")
    >>> result.outcome, result.stdout, result.exit_code
    (<Outcome.USER_ERROR: 'USER_ERROR'>, 'a\nb\n', 3)
"""
