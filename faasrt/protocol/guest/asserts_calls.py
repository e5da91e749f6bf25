# Calls the function of the judged program. asserts_values.py precedes this file. Both are the body of a function with
# the arguments `names`, the namespace of the program, and `name`, the name of the function. It returns `call_all`.


def call(args, kwargs):
    function = names.get(name)
    if function is None:
        raise NameError(f"the program defines no function {name}")
    value = function(*map(from_json, args), **{key: from_json(value) for key, value in kwargs.items()})
    if hasattr(type(value), "__await__"):
        import asyncio

        async def wait():
            return await value

        value = asyncio.run(wait())
    return to_json(value)


def call_all(*cases):
    results = []
    for case in cases:
        try:
            results.append([None, call(*case)])
        except Exception as error:
            results.append([type(error).__name__, str(error)[:500]])
    return results
