"""Programs to run, read and copy. Each is a file of its own, and imports nothing but public names.

    python -m faasrt.examples.fastapi_backend    a web backend: typed answers, errors, health, metrics, cancellation
    python -m faasrt.examples.aiohttp_backend    the same with aiohttp
    python -m faasrt.examples.batch              many answers through graders, and an account that adds up
    python -m faasrt.examples.benchmark          many calls at once, and where the time of each one went
    notebook.ipynb                               a grader, tried out cell by cell; it lies beside this file

They use the servers that the environment names (COZE_LOOP_FAAS_URL and the like), and the embedded FaaS where it names
none, for which they need the extra `local`.
"""
