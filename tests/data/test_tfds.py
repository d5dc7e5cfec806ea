"""TFDS data sets: read by split, split where they have only one, errors in one line."""

import numpy as np
import pytest

from aludel.data import ReadOptions, parse_source, read_documents, source_digest
from aludel.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

STRICT = ReadOptions()


class AludelTexts(tfds.core.GeneratorBasedBuilder):
    """120 texts in `train`; with the config `split`, a validation part of its own."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="whole"), tfds.core.BuilderConfig(name="split")]

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"text": tfds.features.Text(), "n": tfds.features.Scalar(np.int64)}
        )
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, manager):
        parts = {"train": self._generate_examples("train")}
        if self.builder_config.name == "split":
            parts["validation"] = self._generate_examples("validation")
        return parts

    def _generate_examples(self, part):
        for number in range(120):
            yield number, {"text": f"{part} {number} ü", "n": number}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for config in ("whole", "split"):
        builder = AludelTexts(config=config, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    return f"tfds:{folder}/aludel_texts"


def texts(spec, split, options=STRICT):
    return sorted(document.text for document in read_documents(parse_source(spec), split, options))


def test_its_own_splits(prepared):
    spec = f"{prepared}/split/1.0.0"
    assert texts(spec, "train") == sorted(f"train {n} ü" for n in range(120))
    assert texts(spec, "validation") == sorted(f"validation {n} ü" for n in range(120))
    assert len(texts(spec, "all")) == 240
    assert texts(f"{spec}:validation", "all") == texts(spec, "validation")


def test_a_single_split_is_divided_by_hash(prepared):
    spec = f"{prepared}/whole/1.0.0"
    train, validation = texts(spec, "train"), texts(spec, "validation")
    assert sorted(train + validation) == texts(spec, "all")
    assert 3 < len(validation) < 24


def test_digest(prepared, tmp_path):
    specs = [f"{prepared}/whole/1.0.0", f"{prepared}/split/1.0.0"]
    digests = {source_digest(parse_source(spec), ReadOptions(), tmp_path) for spec in specs}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("tail", "field", "says"),
    [
        ("/whole/1.0.0", "txt", "no field 'txt'; did you mean 'text'?"),
        ("/whole/1.0.0", "n", "field 'n' must be a string"),
        ("/whole/1.0.0:tran", "text", "no split 'tran'; did you mean 'train'?"),
    ],
)
def test_bad_records_and_splits(prepared, tail, field, says):
    with pytest.raises(UserError) as error:
        texts(prepared + tail, "all", ReadOptions(field))
    assert says in str(error.value)


def test_an_unknown_data_set():
    with pytest.raises(UserError, match="tfds:no_such_data_set: ") as error:
        texts("tfds:no_such_data_set", "all")
    assert "\n" not in str(error.value)
