# Calls the function of the judged program. asserts_values.py precedes this file. Both are the body of a function with
# the arguments `names`, the namespace of the program, and `name`, the name of the function. It returns `call_all`.


def accepts(kind):
    return True


def call(args, kwargs):
    function = names.get(name)
    if function is None:
        raise NameError(f"the program defines no function {name}")
    sent = [*args, *kwargs.values()]
    values = [from_json(value) for value in sent]
    value = function(*values[: len(args)], **dict(zip(kwargs, values[len(args) :])))  # noqa: B905 (Python 3.9)
    if hasattr(type(value), "__await__"):
        import asyncio

        async def wait():
            return await value

        value = asyncio.run(wait())
    if value is None:
        try:
            changed = [to_json(value) for value in values]
        except (TypeError, ValueError, RecursionError):
            return None
        return None if changed == sent else {"none": changed}
    return to_json(value)


def call_all(*cases):
    results = []
    for case in cases:
        try:
            results.append([None, call(*case)])
        except Exception as error:
            results.append([type(error).__name__, str(error)[:500]])
    return results
