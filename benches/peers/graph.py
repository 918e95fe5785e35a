"""What building a user-item graph, its core numbers and a million sampled neighbourhoods of 8 take with networkx, and what
building takes with SciPy's sparse matrices.

    python graph.py PAIRS    # pairs of little-endian 32-bit numbers: a user and an item

Prints a name, a tab and a number a line. `../graph.rs` makes the file and calls this.
"""

import itertools
import random
import sys
import time

import networkx as nx
import numpy as np
from scipy import sparse


def seconds(what, runs=1):
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        made = what()
        best = min(best, time.perf_counter() - start)
    return best, made


def main(path):
    pairs = np.fromfile(path, dtype="<u4").reshape(-1, 2)
    users = int(pairs[:, 0].max()) + 1
    ends = list(zip(pairs[:, 0].tolist(), (pairs[:, 1] + users).tolist()))

    def build():
        graph = nx.Graph()
        graph.add_edges_from(ends)
        return graph

    took, graph = seconds(build)
    print(f"building\t{took}")
    took, _ = seconds(lambda: nx.core_number(graph), runs=3)
    print(f"core numbers\t{took}")

    nodes = sorted(graph)
    draw = random.Random(7)

    def sample(asked):
        for node in asked:
            neighbors = list(graph[node])
            draw.sample(neighbors, min(8, len(neighbors)))

    in_order = list(itertools.islice(itertools.cycle(nodes), 1_000_000))
    took, _ = seconds(lambda: sample(in_order), runs=3)
    print(f"a million samples of 8\t{took}")
    in_none = draw.choices(nodes, k=1_000_000)
    took, _ = seconds(lambda: sample(in_none), runs=3)
    print(f"the same in no order\t{took}")

    def both_directions():
        of_users = sparse.csr_matrix((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])))
        return of_users, of_users.tocsc()

    took, (rows, columns) = seconds(both_directions, runs=3)
    held = sum(part.nbytes for matrix in (rows, columns) for part in (matrix.data, matrix.indices, matrix.indptr))
    print(f"SciPy, both directions, seconds\t{took}")
    print(f"SciPy, both directions, bytes an edge\t{held / len(pairs)}")


if __name__ == "__main__":
    main(sys.argv[1])
