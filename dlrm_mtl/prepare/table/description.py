"""The description of a user's table and its preparation: the content of the file of ``prepare table --description``."""

from __future__ import annotations

import codecs
import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dlrm_mtl.core.schema import Strict
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.prepare.table.conditions import parse_condition


class SourceConfig(Strict):
    """Format of the files. Only `format`, `nulls`, `decimal` and `thousands` also apply to Parquet files."""

    format: Literal["csv", "parquet"] | None = None
    """`csv` or `parquet`; default: according to the names of the files."""
    separator: str = Field(default=",", min_length=1, max_length=4)
    """Separator of two fields: one to four bytes, such as a comma, "\\t" or "::"."""
    header: bool = True
    """True if the first line of every file names the columns."""
    columns: list[str] | None = None
    """Names of the columns, for files without a header."""
    quote: str | None = Field(default='"', min_length=1, max_length=1)
    """Quotation mark around fields that hold separators or line ends, doubled inside of them; null for none."""
    encoding: str = "utf-8"
    """Encoding of the text, such as utf-8, cp1252 (Western Windows), latin-1, utf-16 or gbk."""
    malformed: Literal["error", "skip"] = "error"
    """Handling of lines that cannot be read, such as those with too few fields: stop with an error, or skip and count them."""
    nulls: list[str] = Field(default_factory=lambda: [""])
    """Texts that mean a missing value, such as "", NA or "?"."""
    skip: int = Field(default=0, ge=0)
    """Number of lines before the header, or before the first row, such as a title."""
    strip: bool = False
    """True if blanks around a field are not part of it."""
    decimal: Literal[".", ","] = "."
    """Decimal point of numbers: 19.90 or 19,90."""
    thousands: Literal[",", ".", " ", "'"] | None = None
    """Separator of thousands in numbers, as in 1,000; default: none."""

    @model_validator(mode="after")
    def _columns_and_header(self) -> SourceConfig:
        if self.header and self.columns is not None:
            raise ValueError("columns names what the header names already; remove it, or set header to false.")
        if not self.header and not self.columns and self.format != "parquet":
            raise ValueError("without a header, columns must name the columns; add it.")
        repeated = sorted({name for name in self.columns or [] if (self.columns or []).count(name) > 1})
        if repeated:
            raise ValueError(f"columns has {repeated[0]!r} more than once; rename one.")
        if self.thousands == self.decimal:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}; change one.")
        if any(character in self.separator for character in "\r\n\0") or self.separator == self.quote:
            raise ValueError(
                f"separator {self.separator!r} is a line end or the quote; name what stands between fields."
            )
        if len(self.separator.encode()) > 4 or (self.quote and (ord(self.quote) > 127 or self.quote in "\r\n\0")):
            raise ValueError("separator may have at most four bytes, and quote must be a printable ASCII character.")
        if self.quote is not None and any(self.quote in text for text in self.nulls):
            raise ValueError(
                f"nulls has a text with the quote {self.quote!r} in it, which fields are read without; remove it."
            )
        return self

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except (LookupError, ValueError):
            raise ValueError(
                f"{encoding!r} is no encoding of texts; use utf-8, cp1252, latin-1, utf-16 or gbk."
            ) from None
        return encoding

    @property
    def is_utf8(self) -> bool:
        """True if files can be read without decoding them first."""
        return codecs.lookup(self.encoding).name in ("utf-8", "ascii")


class FrequencyConfig(Strict):
    """Ids by descending frequency in the training rows, from 1."""

    name: Literal["frequency"] = "frequency"
    min_count: int = Field(default=1, ge=1)
    """Smallest frequency in the training rows for an id; rarer values are unknown, id 0."""
    max_size: int | None = Field(default=None, ge=2, le=2**31)
    """Largest number of ids, including 0: rarer values are unknown. Default: no limit."""


class HashConfig(Strict):
    """Ids by a fixed hash: nothing to store, and values that do not occur in training have ids, too."""

    name: Literal["hash"] = "hash"
    size: int = Field(ge=2, le=2**62)
    """Number of ids, including 0 (unknown). With as many distinct values as ids, two of three values share their id."""
    seed: int = 0
    """Seed of the hash, which determines the values that share an id."""


def _from_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


VocabularyConfig = Annotated[
    Annotated[FrequencyConfig | HashConfig, Field(discriminator="name")], BeforeValidator(_from_name)
]


class FeatureConfig(Strict):
    """One column of the table, and its use."""

    name: str = Field(min_length=1)
    """Name of the feature."""
    kind: Literal["sparse", "sequence", "dense", "keep", "ignore"]
    """`sparse`: a category, or an unordered list of them; `sequence`: a list of categories, oldest first; `dense`: a
    number; `keep`: not a feature, but copied unchanged, so that predictions can be joined to raw rows; `ignore`: unused, so
    that the file can list every column."""
    column: str | None = None
    """Name of the table's column; default: the feature's name."""
    description: str | None = None
    """Text for dataset.yaml."""
    vocabulary: VocabularyConfig | None = None
    """Assignment of ids to values: `frequency` (the default) or `hash`, or either with options."""
    vocabulary_of: str | None = None
    """Name of another feature whose ids this one uses, such as `item` for the last items."""
    separator: str | None = Field(default=None, min_length=1)
    """Separator of the entries of a list in a text, such as "|". Columns of lists in Parquet need none."""
    brackets: bool = False
    """True for lists in brackets, as written by Python and JSON: `[1, 2]`, `['a', 'b']`, numpy's `[1 2]`. Brackets, and
    blanks and quotes around entries, are removed."""
    max_length: int | None = Field(default=None, gt=0)
    """Length to which longer lists are cut: sequences keep their last entries, others their first. Default: no limit."""
    transform: Literal["log1p", "signed_log"] | None = None
    """`log1p`: log(1 + x), for numbers of at least 0; `signed_log`: sign(x) log(1 + |x|), for all."""
    clip: tuple[float, float] | None = None
    """Smallest and largest value, before the transform; values beyond are clipped."""
    fill: float | None = Field(default=None, ge=-1e38, le=1e38)
    """Replacement of a missing number, before clip and transform; default: it stays missing, and the reader takes the mean."""
    standardise: bool = True
    """True if the reader subtracts the mean and divides by the standard deviation, both of the training rows."""

    @property
    def source(self) -> str:
        """Name of the table's column."""
        return self.column or self.name

    @property
    def number_transform(self) -> str | None:
        """Transforms of a dense feature's numbers, in order; None without one."""
        steps = [f"fill {self.fill:g}"] if self.fill is not None else []
        steps += [f"clip {self.clip[0]:g} {self.clip[1]:g}"] if self.clip is not None else []
        steps += [self.transform] if self.transform is not None else []
        return ", ".join(steps) or None

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> FeatureConfig:
        lists = {"separator", "brackets", "max_length"}
        allowed = {
            "sparse": {"vocabulary", "vocabulary_of", *lists},
            "sequence": {"vocabulary", "vocabulary_of", *lists},
            "dense": {"transform", "clip", "fill", "standardise"},
            "keep": set[str](),
            "ignore": {"vocabulary", "vocabulary_of", *lists, "transform", "clip", "fill", "standardise"},
        }[self.kind]
        odd = sorted(self.model_fields_set - allowed - {"name", "kind", "column", "description"})
        if odd:
            raise ValueError(f"{odd[0]} has no meaning for feature {self.name!r}, which is {self.kind}; remove it.")
        if self.vocabulary is not None and self.vocabulary_of is not None:
            raise ValueError(f"feature {self.name!r} has both vocabulary and vocabulary_of; remove one.")
        if self.brackets and (self.separator is None or len(self.separator) != 1):
            raise ValueError(
                f"feature {self.name!r} has lists in brackets, which need a separator of one character; set it."
            )
        if self.clip is not None and self.clip[0] > self.clip[1]:
            raise ValueError(
                f"clip of feature {self.name!r} goes from {self.clip[0]} down to {self.clip[1]}; swap them."
            )
        return self


class LabelConfig(Strict):
    """One label, from a column or from a condition."""

    name: str = Field(min_length=1)
    """Name of the label."""
    kind: Literal["binary", "real"] = "binary"
    """`binary`: 0 or 1; `real`: a number."""
    column: str | None = None
    """Name of the table's column; default: the label's name."""
    where: str | None = None
    """Condition under which the label is 1, instead of a column, such as `rating >= 4` or `income == "50000+"`."""
    description: str | None = None
    """Text for dataset.yaml."""

    @property
    def source(self) -> str:
        """Name of the table's column."""
        return self.column or self.name

    @property
    def columns(self) -> frozenset[str]:
        """Names of all columns of the table that determine the label."""
        return frozenset([self.source]) if self.where is None else parse_condition(self.where).columns

    @model_validator(mode="after")
    def _one_origin(self) -> LabelConfig:
        if self.where is not None:
            if self.column is not None or self.kind == "real":
                raise ValueError(
                    f"label {self.name!r} has where, which makes it binary, beside column or kind; remove one."
                )
            try:
                parse_condition(self.where)
            except ValueError as error:
                raise ValueError(f"where of label {self.name!r}, {self.where!r}, is no condition: {error}.") from None
        return self


Shares = dict[str, float]
DEFAULT_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def _check_shares(shares: Shares) -> Shares:
    if any(not 0 < share <= 1 for share in shares.values()) or not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise ValueError(f"shares {shares} are not numbers above 0 that add up to 1; correct them.")
    return _check_names(shares)


def _check_names(splits: dict[str, Any]) -> dict[str, Any]:
    odd = next((name for name in splits if not name or name in (".", "..") or "/" in name or name[0] in "._"), None)
    if odd is not None:
        raise ValueError(f"{odd!r} cannot be a split's name, as it is the name of its folder; choose another.")
    return splits


class RandomSplit(Strict):
    """Random split of rows."""

    name: Literal["random"]
    shares: Shares = Field(default_factory=lambda: dict(DEFAULT_SHARES))
    """Fraction of each split; exact up to chance."""
    seed: int = 0
    """Seed of the draws."""
    _shares = field_validator("shares")(_check_shares)


class UserSplit(Strict):
    """Split of users: all rows of a user are in one split, to measure on users unseen in training."""

    name: Literal["user"]
    column: str
    """Column that identifies users."""
    shares: Shares = Field(default_factory=lambda: dict(DEFAULT_SHARES))
    """Fraction of the users in each split."""
    seed: int = 0
    """Seed of the draws."""
    _shares = field_validator("shares")(_check_shares)


class TimeSplit(Strict):
    """Split by time: the first rows for training, later ones for the other splits."""

    name: Literal["time"]
    column: str
    """Column with the time: a number, or a date with or without a time of day."""
    cuts: dict[str, str] | None = None
    """Start time of each split after `train`, in the order of time."""
    shares: Shares | None = None
    """Fraction of each split, in the order of time, instead of cuts."""

    @field_validator("cuts", mode="before")
    @classmethod
    def _texts(cls, cuts: Any) -> Any:
        return {str(name): str(cut) for name, cut in cuts.items()} if isinstance(cuts, dict) else cuts

    @model_validator(mode="after")
    def _one_way(self) -> TimeSplit:
        if (self.cuts is None) == (self.shares is None):
            raise ValueError("split by time needs either cuts or shares; give one of them.")
        if self.shares is not None:
            _check_shares(self.shares)
        else:
            _check_names(self.cuts or {})
        return self


class FileSplit(Strict):
    """Split by files that already are splits."""

    name: Literal["files"]
    files: dict[str, list[str]]
    """Names of each split's files, or patterns such as part-*.csv, relative to the folder in --input."""
    divide: dict[str, Shares] = Field(default_factory=dict)
    """Files that are divided at random: the fraction of each split for a name or pattern, such as `{test.csv: {validation:
    0.5, test: 0.5}}`."""
    seed: int = 0
    """Seed of the division."""
    _names = field_validator("files")(_check_names)

    @field_validator("divide")
    @classmethod
    def _check_divided(cls, divide: dict[str, Shares]) -> dict[str, Shares]:
        for shares in divide.values():
            _check_shares(shares)
        return divide


SplitConfig = Annotated[
    Annotated[RandomSplit | UserSplit | TimeSplit | FileSplit, Field(discriminator="name")], BeforeValidator(_from_name)
]


class TableDescription(Strict):
    """The content of a description file."""

    name: str = Field(min_length=1)
    """Name of the data set."""
    description: str = ""
    """Text for dataset.yaml, like licence and citation."""
    licence: str = ""
    citation: str = ""
    source: SourceConfig = SourceConfig()
    """Format of the files."""
    features: list[FeatureConfig] = Field(min_length=1)
    """Features of the model. Columns without an entry are not read."""
    labels: list[LabelConfig] = Field(min_length=1)
    """Labels to predict."""
    split: SplitConfig = RandomSplit(name="random")
    """Division of rows into training and evaluation: `random`, `time`, `user` or `files`, with options."""

    @property
    def used(self) -> list[FeatureConfig]:
        """Features of the model: those that are neither kept nor ignored."""
        return [feature for feature in self.features if feature.kind not in ("keep", "ignore")]

    @property
    def kept(self) -> list[FeatureConfig]:
        """Columns that are copied unchanged."""
        return [feature for feature in self.features if feature.kind == "keep"]

    @property
    def written(self) -> list[str]:
        """Names of the columns on disk, in order."""
        return [*(one.name for one in (*self.used, *self.kept)), *(label.name for label in self.labels)]

    @property
    def split_names(self) -> list[str]:
        """Names of the splits, in order."""
        split = self.split
        if isinstance(split, FileSplit):
            return list(dict.fromkeys([*split.files, *(name for shares in split.divide.values() for name in shares)]))
        if isinstance(split, TimeSplit) and split.cuts is not None:
            return ["train", *split.cuts]
        return list(split.shares or {})

    @model_validator(mode="after")
    def _names_fit(self) -> TableDescription:
        used = {feature.name: feature for feature in self.used}
        if not used:
            raise ValueError("no feature is sparse, sequence or dense; give at least one such a kind.")
        owners = {name: f for name, f in used.items() if f.kind in ("sparse", "sequence") and f.vocabulary_of is None}
        for feature in self.used:
            if feature.vocabulary_of is not None and feature.vocabulary_of not in owners:
                raise ValueError(
                    f"feature {feature.name!r} uses the vocabulary of {feature.vocabulary_of!r}, which is no sparse or "
                    f"sequence feature with a vocabulary of its own; {suggest(feature.vocabulary_of, owners)}."
                )
        lower = [name.lower() for name in self.written]  # databases ignore case
        repeated = next((name for name in self.written if lower.count(name.lower()) > 1), None)
        if repeated is not None:
            raise ValueError(f"{repeated!r} names two features or labels (capitals do not count); rename one.")
        for label in self.labels:
            told = next((feature for feature in used.values() if feature.source in label.columns), None)
            if told is not None:
                raise ValueError(
                    f"feature {told.name!r} reads column {told.source!r}, which label {label.name!r} is made from, and would "
                    "tell the model the answer; remove it or set its kind to ignore."
                )
        names = self.split_names
        if "train" not in names or len(names) != len(set(names)):
            raise ValueError(f"split has {', '.join(names)}; it needs `train`, and each name once.")
        return self
