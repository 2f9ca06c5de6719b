"""RecTools' SASRec and HSTU, as its authors set them up."""

from rectools.models import HSTUModel, SASRecModel

# As in RecTools' own tutorial for HSTU: without, its logits are cosines, which can hardly tell the
# items of a catalogue apart.
TEMPERATURE = 0.05


def make_model(options, get_trainer):
    """An untrained model; what `options` does not say is RecTools' default.

    `options`: model "hstu" or "sasrec", blocks, width, heads, length, rows (a batch's), dropout,
    learning_rate, and with_times if HSTU is to attend without times.
    """
    more = {}
    if options["model"] == "hstu":
        more["lightning_module_kwargs"] = {"logits_t": TEMPERATURE}
        more["relative_time_attention"] = options.get("with_times", True)
    return {"hstu": HSTUModel, "sasrec": SASRecModel}[options["model"]](
        n_blocks=options["blocks"],
        n_factors=options["width"],
        n_heads=options["heads"],
        session_max_len=options["length"],
        batch_size=options["rows"],
        dropout_rate=options["dropout"],
        lr=options["learning_rate"],
        loss="softmax",
        get_trainer_func=get_trainer,
        **more,
    )
