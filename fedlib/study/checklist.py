"""What a study can fill in by itself of CLAIM 2024, the Checklist for Artificial Intelligence in Medical Imaging.

Tejani et al., Radiology: Artificial Intelligence 2024; 6(4): e240300. Numbers are the checklist's, short names are ours.
"""

from typing import Any

import pandas as pd

from fedlib.config import StudyConfig

PERSON = {
    "Title, abstract, introduction": "1 title, 2 abstract, 3 background and clinical role, 4 aims and hypotheses",
    "Study design": "5 prospective or retrospective, 6 goal of the study",
    "Data": "8 eligibility, 10 choice of subsets, 11 de-identification, 12 missing data, 13 image acquisition",
    "Reference standard": "14 definition, 15 rationale, 16 annotators, 17 annotation of the test set, 18 their agreement",
    "Evaluation": "21 intended sample size, 30 robustness, 31 explainability, 33 external testing, 34 registration",
    "Results": "36 demographic and clinical characteristics",
    "Discussion, other": "40 limitations, 41 implications, 44 funding",
}
"""What only a person can fill in."""

MODELS = {
    "classification": "ResNet18 (MONAI) for one grey channel, {width} channels in the stem; output: a probability per class",
    "segmentation": "3D U-Net (MONAI) with residual units, four levels, {width} channels in the first; output: labels",
}
METRICS = {
    "classification": "accuracy; sensitivity averaged over the classes",
    "segmentation": "Dice similarity coefficient and HD95 (mm) of each structure; a missed one has Dice 0 and no distance",
}


def filled(study: StudyConfig, data: dict[str, Any], software: str) -> pd.DataFrame:
    """Item, topic and what this study says of it; `data` is what study.json keeps of the prepared set."""
    counts = data.get("counts", {})
    choices = "; ".join(f"{choice['setting']}: {choice['value']}" for choice in data.get("choices", []))
    rows = [
        (7, "data sources", data["title"] + (" (drawn by a program; no patient)" if data["synthetic"] else "")),
        (9, "preprocessing", choices or "see manifest.json of the prepared set"),
        (19, "partitions", _partitions(study, data)),
        (20, "disjointness", "patient level; known duplicates stay together; clients are made of whole patients too"),
        (22, "model", MODELS[study.task].format(width=study.width)),
        (23, "software", software),
        (24, "initialization", "random from the seed, the same for every arm of a seed; no pre-training"),
        (25, "training", _training(study)),
        (26, "final model", "the one after the last round; nothing is selected on validation or test cases"),
        (27, "ensembling", "none"),
        (28, "metrics", METRICS[study.task]),
        (29, "uncertainty", "95% intervals over test patients; federated against centralized paired by patient"),
        (32, "internal testing", f"{data['test']} cases of the same source, the same for every arm, scored once"),
        (35, "included, excluded", _counted(counts)),
        (37, "performance", "the tables and figures of this page"),
        (38, "estimates and precision", "the tables of this page; per class or structure in notebook 04"),
        (39, "failure analysis", "notebooks 02 and 04: confusion matrix, or the worst, middle and best case"),
        (42, "protocol", "study.json and every run's config.json: all settings"),
        (43, "availability", "code: the commit above; weights: runs/<run>/weights.safetensors; data: see 7"),
    ]
    return pd.DataFrame(rows, columns=["item", "topic", "what this study says"])


def _partitions(study: StudyConfig, data: dict[str, Any]) -> str:
    counts, names = ", ".join(map(str, study.client_counts)), ", ".join(study.partitions).replace("_", " ")
    shares = f"{data['train']} cases train, {data['val']} tune, {data['test']} test"
    return f"{shares}; training cases dealt to {counts} clients, {names}"


def _training(study: StudyConfig) -> str:
    return (
        f"{study.rounds} rounds of {study.local_epochs} local epochs (centralized: as many epochs in all), "
        f"{study.strategy}, batches of {study.batch_size}, AdamW, peak learning rate {study.learning_rate:g}, warm-up, "
        f"cosine decay, small affine augmentation, {study.precision}, seeds {', '.join(map(str, study.seeds))}"
    )


def _counted(counts: dict[str, int]) -> str:
    kept = {"found": "found", "rejected": "rejected (qc.csv says why)", "prepared": "prepared", "patients": "patients"}
    return ", ".join(f"{counts[name]} {words}" for name, words in kept.items() if name in counts) or "see qc.csv of the set"
