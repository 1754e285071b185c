"""What the benchmarks of speed and memory measure, by name: torchvision's networks on images, BERT-base on tokens."""

from __future__ import annotations

from benchmarks import zoo
from benchmarks.measure import Subject
from benchmarks.networks.bert import bert_base, token_batches

BERT = "bert_base"


def subject(name: str, batch: int = 1, seed: int = 0) -> Subject:
    """Return the network ``name`` with an input of ``batch`` images or sequences.

    Args:
        name: ``bert_base``, or a classification network of torchvision's.
        seed: of the weights and the input; calibration and evaluation data are the same for every seed.

    Raises:
        InputError: no network is called that.
        ImportError: torchvision is not installed.
    """
    if name == BERT:
        example = token_batches(1, batch, seed=seed)[0]
        return Subject(name, bert_base(seed), example, token_batches(8, 4, seed=1), token_batches(4, 8, seed=2))
    model, _ = zoo.build(name, seed=seed)
    example = zoo.images(1, batch, zoo.image_size(name), seed=seed)[0]
    return Subject(name, model, example, zoo.calibration(name), zoo.evaluation(name))
