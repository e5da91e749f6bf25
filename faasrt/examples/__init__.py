"""Example programs to run, read and copy. They import only public names.

    python -m faasrt.examples.fastapi_backend     a web backend: typed answers, errors, health, metrics, cancellation
    python -m faasrt.examples.aiohttp_backend     the same with aiohttp
    python -m faasrt.examples.fastapi_streaming   a web page that shows the output of programs while they run
    faasrt.examples.grader                        the part that both backends share
    python -m faasrt.examples.batch_evaluation    runs graders on many answers, and prints a summary
    python -m faasrt.examples.contest_grader      judges generated solutions of contest problems by test cases
    python -m faasrt.examples.benchmark           many concurrent calls, and the time of each phase
    faasrt.examples.agent_openai_agents           a session as a tool in the OpenAI Agents SDK
    faasrt.examples.agent_pydantic_ai             the same in pydantic-ai
    faasrt.examples.agent_langchain               the same in LangChain
    faasrt.examples.agent_smolagents              the same in smolagents, and the code of its `CodeAgent` in a session
    faasrt.examples.agent_deepagents              a session as the sandbox of LangChain's deepagents
    notebook.ipynb                                a grader, cell by cell; the file is in the folder of this package

They use the servers in the environment (COZE_LOOP_FAAS_URL and the like), or the embedded FaaS if there are none, which
needs the extra `local`.
"""
