"""Names, columns and explanations of the metrics on a report page."""

from collections.abc import Collection, Mapping
from typing import Any

from noisytwins_jax.evaluation.report import webpage
from noisytwins_jax.metrics.protocols import CLASSIFIER

HEADLINES: tuple[tuple[str, str, str, int], ...] = (  # key, name, meaning, +1 if higher is better, -1 if lower, else 0
    ("fid", "FID", "all classes pooled", -1),
    ("ifid", "iFID", "mean of the FIDs within each class", -1),
    ("tail_ifid", "Tail iFID", "the same, rarest classes", -1),
    ("fid_clip", "FID_CLIP", "all classes pooled, CLIP's features", -1),
    ("ifid_clip", "iFID_CLIP", "mean within each class, CLIP's features", -1),
    ("tail_ifid_clip", "Tail iFID_CLIP", "the same, rarest classes", -1),
    ("fd_dinov2", "FD_DINOv2", "all classes pooled, DINOv2's features", -1),
    ("ifd_dinov2", "iFD_DINOv2", "mean within each class, DINOv2's features", -1),
    ("cmmd", "CMMD", "kernel distance of CLIP's features; no normal distribution assumed", -1),
    ("kid", "KID", "kernel distance, unbiased; ± over subsets", -1),
    ("few_fid", "FID few", "the few classes alone, against all of their images before the tail was cut off", -1),
    ("few_kid", "KID few", "the same, kernel distance", -1),
    ("inception_score", "Inception Score", "images recognisable and of many kinds", 1),
    ("precision", "Precision", "share of generated images that look real", 1),
    ("recall", "Recall", "share of real images that can be generated", 1),
    ("tail_recall", "Tail recall", "within each of the rarest classes", 1),
    ("density", "Density", "number of real neighbours, relative to real data", 1),
    ("coverage", "Coverage", "share of real images with a generated neighbour", 1),
    ("class_accuracy", "Class accuracy", "share of images recognised as their class", 1),
    ("w_ratio", "W ratio", "variance of W within classes / total; 0 is collapse", 0),
    ("auth_pct", "AuthPct", "percentage of images that are no near copies of training images", 0),
)
DEVIATIONS = {
    "kid": "kid_std",
    "few_kid": "few_kid_std",
    "inception_score": "inception_score_std",
}  # of the estimate, not over classes
COLUMNS = (  # of the tables of groups and classes; columns without any number are left out
    ("fid", "FID, pooled"),
    ("ifid", "iFID"),
    ("fid_clip", "FID_CLIP, pooled"),
    ("ifid_clip", "iFID_CLIP"),
    ("fd_dinov2", "FD_DINOv2, pooled"),
    ("ifd_dinov2", "iFD_DINOv2"),
    ("precision", "Precision"),
    ("recall", "Recall"),
    ("density", "Density"),
    ("coverage", "Coverage"),
    ("class_accuracy", "Class accuracy"),
    ("w_ratio", "W ratio"),
)
TRUNCATION_COLUMNS = (
    ("fid", "FID"),
    ("fid_clip", "FID_CLIP"),
    ("fd_dinov2", "FD_DINOv2"),
    ("inception_score", "Inception Score"),
    ("precision", "Precision"),
    ("recall", "Recall"),
    ("density", "Density"),
    ("coverage", "Coverage"),
    ("n_fake", "Generated images"),
)
PROTOCOL: tuple[tuple[str, str], ...] = (
    ("n_real", "Real images"),
    ("reference_split", "… taken from"),
    ("preprocessing", "… prepared with"),
    ("resolution", "Resolution"),
    ("n_fake", "Generated images"),
    ("n_fake_per_class", "… of each class"),
    ("n_fake_pooled", "… behind pooled values"),
    ("labels", "… with labels"),
    ("few_classes", "Few classes"),
    ("truncation_psi", "Truncation ψ"),
    ("truncation", "Truncation"),
    ("class_noise", "Class noise"),
    ("weights", "Generator weights"),
    ("step", "… of step"),
    ("seed", "Seed"),
    ("k", "Neighbours k"),
)

HOW_TO_READ: tuple[
    tuple[str, str, str], ...
] = (  # the metric or curve that it explains, or "" for every page; name; explanation
    (
        "",
        "FID and iFID",
        "Distance between the features of generated and real images; 0 means equal distributions. FID pools all classes. iFID takes "
        "one class at a time and averages, so it also sees a class that repeats itself or turns into another.",
    ),
    (
        "fid_clip",
        "FID_CLIP and iFID_CLIP",
        "The same distances with features of CLIP, which was trained on other images and on text: they follow what "
        "images show rather than the classes of ImageNet. Their size cannot be compared with that of FID.",
    ),
    (
        "fd_dinov2",
        "FD_DINOv2",
        "The same distance with features of DINOv2, which was trained without labels; it follows human judgement of "
        "realism more closely.",
    ),
    (
        "kid",
        "KID",
        "A distance without bias from the number of images, so it can be trusted with few of them, and can come out "
        "slightly below 0.",
    ),
    (
        "inception_score",
        "Inception Score",
        "High when each image is clearly of one of ImageNet's classes and all of them occur. It does not use the real "
        "images: compare it with that of all real images, in the same row, not with infinity.",
    ),
    (
        "",
        "Precision and recall",
        "Precision asks whether generated images look real, recall whether they have the variety of real ones. A collapsed "
        "generator has high precision and low recall. One is easily traded for the other: read them together.",
    ),
    (
        "class_accuracy",
        "Class accuracy",
        "How often a classifier trained on real images recognises the class that was asked for. High diversity with "
        "low class accuracy is confusion of classes, not diversity.",
    ),
    (
        "w_ratio",
        "W ratio",
        "How much of the latent space W's variance lies within classes. Near 0, every class is a single point: all "
        "its images look the same. Near 1, W hardly depends on the class.",
    ),
    (
        "auth_pct",
        "AuthPct",
        "A generated image counts as authentic if its nearest training image is farther from it than from that image's "
        "own nearest other training image. Low values mean copying; bad images score high too, so read it with FID.",
    ),
    (
        "",
        "Real against real",
        "The same measurement between two halves of the real images. No generator needs to do better; the halves are "
        "smaller sets, which by itself makes their FID and iFID larger.",
    ),
    (
        "w_ratio",
        "Pictures of W",
        "Dots are samples, dark for the head and bright for the tail. Judge the spread of a class by the principal "
        "components: t-SNE draws tight and wide classes at the same size and only tells which are separate and which are mixed.",
    ),
    (
        "loss/discriminator",
        "Curves of the losses",
        "The losses of a GAN do not fall towards 0 as a classifier's do: both networks improve, and the curves stay level. A "
        "discriminator that cannot tell real from generated images has the loss 1.39 and gives the generator .69 (with the "
        "hinge loss 2 and 0). A discriminator's loss that falls to 0 while the generator's grows is overfitting; a sudden jump "
        "of either is divergence. Neither shows that classes collapse: the W ratio does.",
    ),
    (
        "logits/real_sign",
        "logits/real_sign",
        "Mean sign of the discriminator's logits of real images: 0 if it guesses, 1 if it knows every one. Growth towards 1 "
        "means that it learns the training images by heart; ADA keeps it at its target, .6.",
    ),
    (
        "augment/p",
        "augment/p",
        "ADA's probability of each augmentation. It rises from 0 for as long as logits/real_sign is above its target, and then "
        "hovers; with few images it settles higher. Above about .8, augmentations leak into generated images.",
    ),
    (
        "loss/r1",
        "loss/r1",
        "Penalty on the discriminator's gradient at real images, with its weight. It rises at first and then stays level, "
        "small beside the discriminator's loss; growth without end says that γ is too small.",
    ),
    (
        "loss/generator/noisytwins",
        "loss/generator/noisytwins",
        "Distance of the cross-correlation of twins' w from the identity, before its weight. It falls slowly and never to 0; if "
        "it stands still and the W ratio falls, its weight is too small.",
    ),
    (
        "loss/discriminator/lecam",
        "loss/discriminator/lecam",
        "LeCam's pull of logits towards the other side's running mean, before its weight. It grows as the logits of real and "
        "generated images move apart.",
    ),
    (
        "",
        "Comparing with other work",
        "Numbers are comparable only under the same protocol: same feature extractor, same real images, same counts. "
        "Training again with another seed moves them; a single run shows no more than itself.",
    ),
)
_CLASSIFIER_SCORE = (  # replaces the above where the headline's extractor is the classifier
    "High when the data set's own classifier is sure of each image's class and all classes occur. It is not Inception's "
    "score over ImageNet's classes, so compare it with no published one. It does not use the real images: compare it with "
    "that of all real images, in the same row, not with infinity."
)


def how_to_read(evaluation: Mapping[str, Any], metrics: Collection[str]) -> str:
    """Return the section that explains `metrics` and curves, for the evaluation's headline extractor."""
    headline = (evaluation.get("protocol") or {}).get("headline_extractor") or CLASSIFIER
    others = {"inception_score": _CLASSIFIER_SCORE} if headline == CLASSIFIER else {}
    entries = [(name, others.get(key, words)) for key, name, words in HOW_TO_READ if not key or key in metrics]
    return webpage.section("How to read this page", webpage.definition_list(entries, "words"))


def known_metrics(evaluations: Collection[Mapping[str, Any]]) -> set[str]:
    """Return the names of the metrics that at least one evaluation has."""
    return {key for e in evaluations for key, value in (e.get("metrics") or {}).items() if value is not None}
