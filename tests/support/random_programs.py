"""Programs that print random numbers and secrets, which differ in each run."""

RANDOM = {
    "random": "import random; print(random.random(), random.Random().random(), random.randbytes(8))",
    "secrets": "import secrets; print(secrets.token_hex())",
    "os.urandom": "import os; print(os.urandom(16))",
    "uuid": "import uuid; print(uuid.uuid4(), uuid.uuid1(), uuid.getnode())",
    "tempfile": "import tempfile; print(next(tempfile._get_candidate_names()))",
    "numpy": "import numpy; print(numpy.random.random(), numpy.random.default_rng().random())",
    "numpy's seeds": "import numpy; print(numpy.random.get_bit_generator().seed_seq.spawn(1)[0].generate_state(2))",
    "pandas": "import pandas; print(list(pandas.Series(range(99)).sample(9)))",
    "scipy": "import scipy.stats; print(scipy.stats.norm.rvs(size=2))",
    "sympy": "import sympy.core.random; print(sympy.core.random.rng.random())",
    "sympy's symbols": "import sympy; print(sympy.Dummy().dummy_index)",
    "sklearn": "import sklearn.utils; print(sklearn.utils.check_random_state(None).random())",
    "joblib": "import sklearn, multiprocessing.process as p; print(p.current_process().authkey.hex())",
    "multiprocessing": "import multiprocessing.process as p; print(p.current_process().authkey.hex())",
}
