"""The model that this project began from, in Keras 3, trained a few steps on request.

Embedding of 512, one multi-head attention of 8 heads with keys of 512, a dense layer of 512, a
softmax over the items at every position; no order, no time, no place, no causal mask.

Usage: KERAS_BACKEND=tensorflow|jax keras_seed.py OPTIONS, JSON: num_items, width, heads, length,
rows. Each line on standard input, JSON {"steps": n}, trains n steps on one batch of random events
with Keras' own compiled `train_on_batch`, and prints the seconds.
"""

import json
import sys
import time

import keras
import numpy as np


def answer(**values):
    """One line for the other side."""
    print("answer " + json.dumps(values), flush=True)


def main(options):
    """Builds, compiles, warms up and answers until standard input ends."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(2)
        tf.config.threading.set_inter_op_parallelism_threads(2)
        version = {"tensorflow": tf.__version__}
    else:
        import jax

        version = {"jax": jax.__version__}
    keras.utils.set_random_seed(0)
    num_items, width, length = options["num_items"], options["width"], options["length"]
    items = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(num_items, width)(items)
    x = keras.layers.MultiHeadAttention(options["heads"], key_dim=width)(x, x)
    x = keras.layers.Dense(width, activation="relu")(x)
    model = keras.Model(items, keras.layers.Dense(num_items, activation="softmax")(x))
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", jit_compile="auto")
    random = np.random.default_rng(0)
    log = random.integers(0, num_items, (options["rows"], length + 1)).astype(np.int32)

    def train(steps):
        start = time.perf_counter()
        for _ in range(steps):
            loss = model.train_on_batch(log[:, :-1], log[:, 1:])  # a number: it has waited
        return time.perf_counter() - start, float(loss)

    train(1)
    answer(
        versions={"keras": keras.__version__, "numpy": np.__version__, **version},
        parameters=model.count_params(),
    )
    for line in sys.stdin:
        steps = json.loads(line)["steps"]
        seconds, loss = train(steps)
        answer(seconds=seconds, events=steps * options["rows"] * length, loss=loss)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
