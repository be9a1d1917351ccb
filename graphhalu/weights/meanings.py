"""What every quantity of a profile is, in one line; the pages and files repeat it."""

from typing import Final

HEAD_MEANINGS: Final[dict[str, str]] = {
    "q_norm": "Frobenius norm of W_Q with the gain of the norm before it",
    "k_norm": "Frobenius norm of W_K with that gain; heads of a group share it",
    "v_norm": "Frobenius norm of W_V with that gain: expected norm of a value vector",
    "o_norm": "Frobenius norm of the columns of W_O that belong to the head",
    "qk_norm": "Frobenius norm of the QK circuit, scaling included, at offset 0",
    "qk_sigma_max": "largest singular value of the QK circuit",
    "qk_stable_rank": "stable rank of the QK circuit",
    "qk_entropy_rank": "entropy rank of the QK circuit",
    "logit_variance": "s^2: variance of attention logits over keys, mean over RoPE offsets (nat^2)",
    "logit_variance_near": "s^2 at the smallest offset",
    "logit_variance_far": "s^2 at the largest offset",
    "self_logit": "mean logit of a token on itself; 0 on others",
    "entropy_estimate": "log n - s^2 / 2 in nat (estimate); null where peaked",
    "logit_bound": "largest logit that any input can have; loose",
    "ov_norm": "Frobenius norm of the OV circuit",
    "ov_sigma_max": "largest singular value of the OV circuit",
    "ov_stable_rank": "stable rank of the OV circuit",
    "copying": "copying score of the OV circuit, -1 to 1; norms linearised",
    "q_composition": "largest query composition with a head below, 0 to 1",
    "k_composition": "largest key composition with a head below, 0 to 1",
    "v_composition": "largest value composition with a head below, 0 to 1",
    "strength": "sqrt of the product of stored norms of W_Q and W_K: published, kept as a control",
}

LAYER_MEANINGS: Final[dict[str, str]] = {
    "logit_variance": "mean s^2 of the heads (nat^2)",
    "valid_share": "share of heads whose entropy estimate is within 5 %",
    "peaked_share": "share of heads beyond 2 log n, where the estimate has no meaning",
    "value_norm": "root mean square over heads of the expected norm of a value vector",
    "value_amplification": "value_norm over the median of all layers",
    "ov_norm": "root mean square over heads of the norm of the OV circuit",
    "copying": "mean copying score of the heads",
    "ov_rank": "mean stable rank of the OV circuits over the size of a head",
    "tail_alpha": "mean power-law exponent of the layer's matrices",
    "outlier": "largest outlier ratio (max / RMS) of the layer's matrices",
    "attention_gain": "norm that evenly spread attention gives, over that of its input (estimate; "
    "exact where a norm follows)",
    "mlp_gain": "norm that the feed-forward block gives for isotropic input, over that of its "
    "input (estimate; exact where a norm follows)",
    "gain_ratio": "mlp_gain over attention_gain (estimate)",
    "dominance": "product of three feed-forward norms over that of W_Q and W_K: published, "
    "units differ, kept as a control",
}
