"""One number a trace from the output distributions, or from its length."""

from typing import ClassVar, Final, final

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.scalar.base import FeatureScalar
from graphhalu.features.spec import FeatureSpec

_LEARNT: Final = "Published with a fixed sign; here it is learnt on the training side."


@final
class Perplexity(FeatureScalar):
    """How unlikely the model found its own answer.

    Summary:
        exponential of the mean negative log-probability of the answer tokens

    Source:
        Jelinek et al. 1977; as a detector Ren et al. 2023, arXiv:2209.15558.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("perplexity")
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "perplexity", "likelihood", reads=("token_logprob",), note=_LEARNT
    )


@final
class MinLogprob(FeatureScalar):
    """The least likely token of the answer.

    Summary:
        log-probability of the least likely answer token

    Source:
        Manakul et al. 2023, SelfCheckGPT, arXiv:2303.08896.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("logprob_min")
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "min-logprob", "likelihood", reads=("token_logprob",), note=_LEARNT
    )


@final
class Entropy(FeatureScalar):
    """How undecided the model was.

    Summary:
        mean entropy of the distributions that the answer tokens were taken from

    Source:
        Mean token entropy, Fomicheva et al. 2020, arXiv:2005.10608.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("output_entropy_mean")
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "entropy", "likelihood", reads=("token_entropy",), note=_LEARNT
    )


@final
class Likelihood(FeatureScalar):
    """Control: the probability of the whole answer.

    Summary:
        log-probability of the whole answer

    Source:
        Control: maximum sequence probability, Fadeeva et al. 2023, arXiv:2311.07383; it falls with
        length.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("logprob_sum")
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "likelihood", "likelihood", reads=("token_logprob",), is_control=True, note=_LEARNT
    )


@final
class AnswerLength(FeatureScalar):
    """Control: the number of answer tokens. A detector that only finds length finds nothing.

    Summary:
        number of answer tokens

    Source:
        Control; the sign is learnt.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("answer_length")
    card: ClassVar[DetectorCard] = DetectorCard.of(__doc__, "length", "length", is_control=True)
