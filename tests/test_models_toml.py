"""models_toml.py and settings.py: what is accepted, what overrules what; an error says where."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from embedserve.config import models_toml
from embedserve.config.api_keys import VARIABLE
from embedserve.config.models_toml import Alias, Config, ModelSpec, Package
from embedserve.config.settings import Settings, merge
from embedserve.errors import Exit, StartupError

REPOSITORY = Path(__file__).parent.parent
ONE_MODEL = "\n[models.tiny]\n"
REVISION = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "ab" * 32


def written(directory: Path, text: str) -> Path:
    """Write text as models.toml."""
    path = directory / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


def settings_of(
    directory: Path,
    server: str = "",
    environment: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
) -> Settings:
    """Settings of a models.toml with this [server] table."""
    path = written(directory, f"[server]\n{server}\n{ONE_MODEL}")
    return merge(models_toml.read(path), environment or {}, flags or {}, path)


def refused(error: pytest.ExceptionInfo[StartupError], *parts: str) -> None:
    """The message is one line and holds every part."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# What pip would take for an option, a URL, a file, or more than a name and a version.
NO_PACKAGES = (
    "evil @ http://127.0.0.1/#", "-rrequirements.txt", "--editable=.", "./a", "/a", "a/b", "a.whl/",
    "file:a", "git+https://a", "a[extra]", "a;python_version>'3'", "a>=1", "a ", "", "ä", "a\n-r b",
    "-", ".", "a" * 129,
)  # fmt: skip
NO_VERSIONS = (
    "1.*",
    "=1",
    "1,<2",
    "1 --no-binary=:all:",
    "1;x",
    "1 @ file:a",
    "",
    "x",
    "v1",
    "1\n",
)


class TestModelsToml:
    """The list of models."""

    def test_the_repository_s_own_list(self) -> None:
        """models.toml reads, and each of its four models is pinned to a commit."""
        read = models_toml.read(REPOSITORY / "models.toml")
        assert list(read.models) == [
            "all-MiniLM-L6-v2",
            "all-mpnet-base-v2",
            "nomic-embed-text-v1",
            "nomic-embed-text-v1.5",
        ]
        for name, spec in read.models.items():
            assert spec.name == name
            assert spec.repository is not None
            assert spec.repository.endswith(name)
            assert spec.revision is not None
            assert len(bytes.fromhex(spec.revision)) == 20
        path = REPOSITORY / "models.toml"
        assert merge(read, {}, {}, path) == Settings()

    def test_every_key(self, tmp_path: Path) -> None:
        """Each key of a model's table arrives in its ModelSpec."""
        text = f"""
            [models.full]
            repository = "owner/name"
            revision = "{REVISION}"
            package = {{ name = "wheel", version = "1.0", sha256 = "{DIGEST}" }}
            sha256 = {{ "config.json" = "{DIGEST}", "1_Pooling/config.json" = "{DIGEST}" }}
            finishing = ["layer_norm", "normalize"]
            matryoshka = [64, 768, 256]
            prompts = {{ query = "query: " }}
            max_tokens = 512
            task = "retrieval.query"
            optional = true
            accept_token_ids = true
            """
        spec = models_toml.read(written(tmp_path, text)).models["full"]
        assert spec == ModelSpec(
            name="full",
            repository="owner/name",
            revision=REVISION,
            package=(Package("wheel", "1.0", DIGEST),),
            sha256={"config.json": DIGEST, "1_Pooling/config.json": DIGEST},
            finishing=("layer_norm", "normalize"),
            matryoshka=(768, 256, 64),
            prompts={"query": "query: "},
            max_tokens=512,
            task="retrieval.query",
            optional=True,
            accept_token_ids=True,
        )

    def test_an_empty_table_says_nothing(self, tmp_path: Path) -> None:
        """What the card does not say is None, so that the model's files are asked."""
        spec = models_toml.read(written(tmp_path, ONE_MODEL)).models["tiny"]
        assert spec == ModelSpec(name="tiny")
        assert spec.finishing is None
        assert spec.matryoshka is None
        assert spec.prompts is None
        assert spec.max_tokens is None
        assert spec.task is None
        assert spec.optional is False
        assert spec.accept_token_ids is False

    def test_a_package_in_parts(self, tmp_path: Path) -> None:
        """Several wheels, in the order of the file."""
        part = "[[models.m.package]]\nname = '{}'\nversion = '1'\nsha256 = '{}'\n"
        path = written(tmp_path, part.format("b", DIGEST) + part.format("a", DIGEST))
        assert models_toml.read(path).models["m"].package == (
            Package("b", "1", DIGEST),
            Package("a", "1", DIGEST),
        )

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("[]", "names none; name at least one wheel, and each once"),
            ("[1]", "package = 1; a table"),
            (
                f"[{{name='a',version='1',sha256='{DIGEST}'}},"
                f"{{name='a',version='2',sha256='{DIGEST}'}}]",
                "names a, a; name at least one wheel, and each once",
            ),
            ("[{name='a',version='1'}]", "package.sha256"),
            *((f"{{name={json.dumps(n)}}}", "package.name") for n in NO_PACKAGES),
            *((f"{{name='a',version={json.dumps(v)}}}", "package.version") for v in NO_VERSIONS),
            ("{version='1'}", "package.name"),
            ("{name='a'}", "package.version"),
        ],
    )
    def test_a_wrong_package(self, tmp_path: Path, value: str, said: str) -> None:
        """A list is of tables, none empty, none twice."""
        path = written(tmp_path, f"[models.bad]\npackage = {value}\n")
        with pytest.raises(StartupError) as error:
            models_toml.read(path)
        refused(error, f"{path}: [models.bad]", said)

    def test_models_keep_their_order(self, tmp_path: Path) -> None:
        """The list a client gets is in the file's order."""
        names = ["zebra", "apple", "mango", "berry"]
        text = "".join(f"[models.{name}]\n" for name in names)
        assert list(models_toml.read(written(tmp_path, text)).models) == names

    def test_nothing_can_be_changed_afterwards(self, tmp_path: Path) -> None:
        """What was read is frozen, its mappings too."""
        read = models_toml.read(written(tmp_path, ONE_MODEL + f'sha256 = {{ "a" = "{DIGEST}" }}'))
        spec = read.models["tiny"]
        with pytest.raises(FrozenInstanceError):
            spec.revision = REVISION  # type: ignore[misc]  # what is tested
        with pytest.raises(TypeError):
            read.models["other"] = spec  # type: ignore[index]  # what is tested
        with pytest.raises(TypeError):
            spec.sha256["b"] = DIGEST  # type: ignore[index]  # what is tested

    def test_a_missing_file(self, tmp_path: Path) -> None:
        """The path is named, with the flag that sets it and the exit status of a missing input."""
        path = tmp_path / "nowhere.toml"
        with pytest.raises(StartupError) as error:
            models_toml.read(path)
        refused(error, str(path), "--models")
        assert error.value.status == Exit.NOINPUT

    @pytest.mark.parametrize(
        "content",
        [b"[models", b"a = 1\na = 2\n", b"[models.\xff]\n", b"\xff\xfe[\x00"],
        ids=["syntax", "key twice", "not UTF-8", "UTF-16"],
    )
    def test_no_toml(self, tmp_path: Path, content: bytes) -> None:
        """A file that is no TOML is named."""
        path = tmp_path / "models.toml"
        path.write_bytes(content)
        with pytest.raises(StartupError) as error:
            models_toml.read(path)
        refused(error, str(path), "TOML")

    def test_a_directory_is_no_file(self, tmp_path: Path) -> None:
        """Something that cannot be read is named like something that cannot be parsed."""
        with pytest.raises(StartupError) as error:
            models_toml.read(tmp_path)
        refused(error, str(tmp_path))

    @pytest.mark.parametrize(
        "text", ["", "[server]\n", "[models]\n"], ids=["empty", "server only", "empty models"]
    )
    def test_at_least_one_model(self, tmp_path: Path, text: str) -> None:
        """A list without a model is refused at once."""
        path = written(tmp_path, text)
        with pytest.raises(StartupError) as error:
            models_toml.read(path)
        refused(error, str(path), "[models.NAME]")

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("port = 1\n[models.a]", ["port", "server, models, aliases"]),
            ("[other]\n[models.a]", ["other", "server, models, aliases"]),
            ("server = 3\n[models.a]", ["[server]", "3", "a table"]),
            ("models = [1]", ["[models]", "[1]", "a table"]),
            ("[models]\na = 1", ["[models.a]", "1", "a table"]),
        ],
        ids=["top key", "top table", "server no table", "models no table", "model no table"],
    )
    def test_the_document_s_shape(self, tmp_path: Path, text: str, parts: list[str]) -> None:
        """Unknown keys and wrong tables are named with what is accepted."""
        path = written(tmp_path, text)
        with pytest.raises(StartupError) as error:
            models_toml.read(path)
        refused(error, str(path), *parts)

    @pytest.mark.parametrize(
        ("name", "good"),
        [
            ("a", True),
            ("all-MiniLM_L6.v2", True),
            ("9", True),
            ("x" * 128, True),
            ("x" * 129, False),
            ("", False),
            ("a/b", False),
            ("..", False),
            (".hidden", False),
            ("-flag", False),
            ("a b", False),
            ("é", False),
            ("a\\n", False),
        ],
        ids=lambda value: repr(value)[:20],
    )
    def test_a_model_s_name(self, tmp_path: Path, name: str, good: bool) -> None:
        """A name is safe as a directory and in a URL."""
        path = written(tmp_path, f'[models."{name}"]\n')
        if good:
            assert list(models_toml.read(path).models) == [name]
            return
        with pytest.raises(StartupError) as error:
            models_toml.read(path)
        assert str(error.value).startswith(f"{path}: [models.")

    @pytest.mark.parametrize(
        ("body", "key", "accepted"),
        [
            ("pooling = 'mean'", "pooling", "known: repository, revision"),
            ("name = 'x'", "name", "known: repository, revision"),
            ("repository = 3", "repository = 3", "owner/name"),
            ("repository = 'name'", 'repository = "name"', "owner/name"),
            ("repository = 'a/b/c'", 'repository = "a/b/c"', "owner/name"),
            ("repository = 'https://hub/a/b'", "repository = ", "owner/name"),
            ("revision = 'main'", 'revision = "main"', "40 hexadecimal digits"),
            (f"revision = '{REVISION[:-1]}'", "revision = ", "40 hexadecimal digits"),
            (f"revision = '{REVISION.upper()}'", "revision = ", "40 hexadecimal digits"),
            ("revision = 1234", "revision = 1234", "40 hexadecimal digits"),
            ("repository = 'a/b'", "repository and revision", "missing"),
            (f"revision = '{REVISION}'", "repository and revision", "missing"),
            ("sha256 = 'abc'", "sha256", "a table"),
            ("sha256 = { 'f.json' = 'abc' }", 'sha256."f.json"', "64 hexadecimal digits"),
            ("sha256 = { 'f.json' = 1 }", 'sha256."f.json"', "64 hexadecimal digits"),
            (f"sha256 = {{ '../f' = '{DIGEST}' }}", 'sha256."../f"', "inside the model"),
            (f"sha256 = {{ '/f' = '{DIGEST}' }}", 'sha256."/f"', "inside the model"),
            (f"sha256 = {{ 'a/../../f' = '{DIGEST}' }}", 'sha256."a/', "inside the model"),
            ("package = 'wheel'", "package", "a table"),
            ("package = { name = 'a', version = '1' }", "package.sha256", "64 hexadecimal digits"),
            (f"package = {{ version = '1', sha256 = '{DIGEST}' }}", "package.name", "a string"),
            (
                f"package = {{ name = 'a', version = 1, sha256 = '{DIGEST}' }}",
                "package.version",
                "a string",
            ),
            (
                "package = { name = 'a', version = '1', sha256 = 'z' }",
                "package.sha256",
                "64 hexadecimal digits",
            ),
            ("package = { url = 'x' }", "package url", "known: name, version, sha256"),
            ("finishing = 'normalize'", 'finishing = "normalize"', "layer_norm, normalize"),
            ("finishing = ['norm']", "finishing = ['norm']", "layer_norm, normalize"),
            ("finishing = [1]", "finishing = [1]", "layer_norm, normalize"),
            ("finishing = [['normalize']]", "finishing = ", "layer_norm, normalize"),
            ("matryoshka = 64", "matryoshka = 64", "a list"),
            ("matryoshka = []", "matryoshka = []", "a list"),
            ("matryoshka = [64, 0]", "matryoshka = [64, 0]", "from 1"),
            ("matryoshka = [64.0]", "matryoshka = [64.0]", "a list"),
            ("matryoshka = [true]", "matryoshka = [True]", "a list"),
            ("matryoshka = ['64']", "matryoshka = ['64']", "a list"),
            ("prompts = 'query: '", "prompts", "a table"),
            ("prompts = { query = 1 }", "prompts.query = 1", "a string"),
            ("prompts = { query = ['a'] }", "prompts.query = ", "a string"),
            ('precision = "int4"', 'precision = "int4"', "fp32 or fp16 or int8"),
            ("agreement = 1.5", "agreement = 1.5", "a number from 0 to 1"),
            ('agreement = "0.9"', 'agreement = "0.9"', "a number from 0 to 1"),
            ("max_tokens = 0", "max_tokens = 0", "an integer from 1"),
            ("max_tokens = -1", "max_tokens = -1", "an integer from 1"),
            ("max_tokens = 512.0", "max_tokens = 512.0", "an integer from 1"),
            ("max_tokens = true", "max_tokens = true", "an integer from 1"),
            ("max_tokens = '512'", 'max_tokens = "512"', "an integer from 1"),
            ("task = 1", "task = 1", "1 to 64 letters"),
            ("task = ''", 'task = ""', "1 to 64 letters"),
            ("task = '../up'", 'task = "../up"', "1 to 64 letters"),
            (f"task = '{'t' * 65}'", "task = ", "1 to 64 letters"),
            ("optional = 1", "optional = 1", "true or false"),
            ("accept_token_ids = 1", "accept_token_ids = 1", "true or false"),
            ("accept_token_ids = 'true'", 'accept_token_ids = "true"', "true or false"),
        ],
        ids=lambda value: value if "=" in value else "",
    )
    def test_a_wrong_value_names_file_table_and_key(
        self, tmp_path: Path, body: str, key: str, accepted: str
    ) -> None:
        """The message says where, what was found and what is accepted."""
        path = written(tmp_path, f"[models.good]\n[models.bad]\n{body}\n")
        with pytest.raises(StartupError) as error:
            models_toml.read(path)
        refused(error, f"{path}: [models.bad]", key, accepted)
        assert error.value.status == Exit.CONFIG

    @pytest.mark.parametrize(
        "body",
        [r'repository = "a\nb"', r'revision = "a\nb"', r'"a\nb" = 1', r'sha256 = {"a\nb" = "x"}'],
        ids=["repository", "revision", "key", "file"],
    )
    def test_a_line_break_in_a_value_stays_out_of_the_message(
        self, tmp_path: Path, body: str
    ) -> None:
        """A start-up error is one line, whatever stands in the file."""
        path = written(tmp_path, f"[models.bad]\n{body}\n")
        with pytest.raises(StartupError) as error:
            models_toml.read(path)
        refused(error, f"{path}: [models.bad]")


class TestAliases:
    """Other names of a model."""

    def test_every_key(self, tmp_path: Path) -> None:
        """An alias fixes prompt and dimensions, or neither."""
        text = """
            [aliases.first]
            model = "tiny"
            prompt_name = "query"
            dimensions = 64
            [aliases.second]
            model = "tiny"
            [models.tiny]
            """
        read = models_toml.read(written(tmp_path, text))
        assert list(read.aliases.values()) == [
            Alias("first", "tiny", "query", 64),
            Alias("second", "tiny", None, None),
        ]
        assert list(read.models) == ["tiny"]

    @pytest.mark.parametrize(
        ("name", "body", "parts"),
        [
            ("bad", "", ["model = ", "one of tiny"]),
            ("bad", "model = 'other'", ['model = "other"', "one of tiny"]),
            ("bad", "model = 1", ["model = 1", "one of tiny"]),
            ("bad", "model = ['tiny']", ["model = ", "one of tiny"]),
            ("bad", "model = 'tiny'\nprompt_name = 1", ["prompt_name = 1", "a string"]),
            ("bad", "model = 'tiny'\ndimensions = 0", ["dimensions = 0", "from 1"]),
            ("bad", "model = 'tiny'\ndimensions = 64.0", ["dimensions = 64.0", "an integer"]),
            ("bad", "model = 'tiny'\ndimensions = true", ["dimensions = true", "an integer"]),
            ("bad", "model = 'tiny'\nprompt = 'x'", ["prompt: unknown key", "prompt_name"]),
            ("tiny", "model = 'tiny'", ["that no model uses"]),
            ("a/b", "model = 'tiny'", ["must be a valid model name"]),
        ],
        ids=[
            "no model",
            "other model",
            "number",
            "list",
            "prompt",
            "zero",
            "float",
            "boolean",
            "unknown key",
            "a model's name",
            "no name",
        ],
    )
    def test_a_wrong_value_names_file_table_and_key(
        self, tmp_path: Path, name: str, body: str, parts: list[str]
    ) -> None:
        """The message says where, what was found and what is accepted."""
        path = written(tmp_path, f'[models.tiny]\n[aliases."{name}"]\n{body}\n')
        with pytest.raises(StartupError) as error:
            models_toml.read(path)
        refused(error, f"{path}: [aliases.{name}]", *parts)

    @pytest.mark.parametrize("text", ["aliases = 1", "aliases = { a = 'tiny' }"])
    def test_no_table(self, tmp_path: Path, text: str) -> None:
        """An alias is a table."""
        path = written(tmp_path, f"{text}\n[models.tiny]\n")
        with pytest.raises(StartupError) as error:
            models_toml.read(path)
        refused(error, f"{path}: [aliases", "a table")


# A value for each setting in each of its three places: TOML, variable, flag.
VALUES: dict[str, tuple[object, object, object]] = {
    "host": ("10.0.0.1", "10.0.0.2", "10.0.0.3"),
    "port": (1001, 1002, 1003),
    "provider": ("cuda", "cpu", "cuda"),
    "processes": (2, 3, 4),
    "lanes": (1, 2, 3),
    "tokens_per_pass": (101, 102, 103),
    "cache_mb": (81, 82, 83),
    "max_wait": (1.5, 2.5, 3.5),
    "request_timeout": (11.5, 12.5, 13.5),
    "max_inputs": (21, 22, 23),
    "max_request_tokens": (31, 32, 33),
    "max_body_bytes": (41, 42, 43),
    "max_body_seconds": (51.5, 52.5, 53.5),
    "max_pending_mb": (54, 55, 56),
    "max_connections": (71, 72, 73),
    "drain_seconds": (61.5, 62.5, 63.5),
    "skip_missing": (True, False, True),
    "api_keys_file": ("/a", "/b", "/c"),
    "open_metrics": (True, False, True),
    "cors_origins": (("https://a",), ("https://b", "https://c"), ("*",)),
    "tracing": (True, False, True),
    "server_timing": (False, True, False),
    "access_log": (False, True, False),
    "log_format": ("json", "text", "json"),
    "log_level": ("debug", "warning", "error"),
}
WRONG: dict[str, list[str]] = {
    "host": ['""', "1", "true", '["a"]'],
    "port": ["-1", "65536", "80.0", '"80"', "true", "[80]", "nan"],
    "provider": ['"gpu"', '"CPU"', "1", "false"],
    "processes": ["0", "257", "1.0", '"all"', "true"],
    "lanes": ["-1", "257", "1.0", '"all"', "true"],
    "tokens_per_pass": ["-1", "1000001", "256.0", '"256"'],
    "cache_mb": ["-1", "1000001", "1.5", "true"],
    "max_wait": ["0", "-1.0", "3601", "nan", "inf", '"1"', "true", "[1.0]", "1" + "0" * 400],
    "request_timeout": ["0", "3600.5", "nan", '"60"', "false"],
    "max_inputs": ["0", "1000001", "1.5", "true"],
    "max_request_tokens": ["0", "1000000001", "1e6"],
    "max_body_bytes": ["0", "2147483648", "1e6", '"1 MB"'],
    "max_body_seconds": ["0", "3601", "nan", '"1m"'],
    "max_pending_mb": ["0", "1000001", "1.5", "true"],
    "max_connections": ["0", "1000001", "1.5", "true"],
    "drain_seconds": ["-0.1", "3601", "inf", "true", "2024-01-01"],
    "skip_missing": ["1", "0", '"true"', "{}"],
    "api_keys_file": ["1", "false", '["a"]'],
    "open_metrics": ["1", '"yes"'],
    "cors_origins": ['"https://a"', "[1]", '[""]', "true", '[["https://a"]]'],
    "tracing": ["1", '"true"'],
    "server_timing": ["0", '"false"'],
    "access_log": ["0", '"false"'],
    "log_format": ['"logfmt"', '"JSON"', "1"],
    "log_level": ['"trace"', '"INFO"', "10", "[]"],
}


def toml(value: object) -> str:
    """A value as TOML."""
    if isinstance(value, tuple):
        return str(list(value))
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def typed(value: object) -> str:
    """A value as a variable's or a flag's text."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


class TestSettings:
    """[server], the environment and flags."""

    def test_no_setting_is_untested(self) -> None:
        """Both tables above have a row for each setting."""
        names = {f.name for f in fields(Settings)}
        assert set(VALUES) == names
        assert set(WRONG) == names

    def test_defaults(self, tmp_path: Path) -> None:
        """Without a word from anywhere the defaults hold."""
        assert settings_of(tmp_path) == Settings()

    @pytest.mark.parametrize("name", VALUES)
    def test_default_then_server_then_environment_then_flag(
        self, tmp_path: Path, name: str
    ) -> None:
        """Each place overrules those before it, and leaves the other settings alone."""
        in_file, in_environment, in_flag = VALUES[name]
        server = f"{name} = {toml(in_file)}"
        environment = {f"EMBEDSERVE_{name.upper()}": typed(in_environment)}
        flags = {name: typed(in_flag)}
        results = [
            settings_of(tmp_path, server),
            settings_of(tmp_path, server, environment),
            settings_of(tmp_path, server, environment, flags),
            settings_of(tmp_path, server, flags=flags),
            settings_of(tmp_path, "", environment),
        ]
        found = [getattr(result, name) for result in results]
        assert found == [in_file, in_environment, in_flag, in_flag, in_environment]
        kind = type(getattr(Settings(), name))
        for result in results:
            assert type(getattr(result, name)) is kind
            others = [f.name for f in fields(Settings) if f.name != name]
            assert all(getattr(result, o) == getattr(Settings(), o) for o in others)

    @pytest.mark.parametrize(
        ("name", "text"),
        [(name, text) for name, texts in WRONG.items() for text in texts],
        ids=lambda value: value[:24],
    )
    def test_a_wrong_value_in_the_file(self, tmp_path: Path, name: str, text: str) -> None:
        """File, table and key are named; wrong types are not converted."""
        with pytest.raises(StartupError) as error:
            settings_of(tmp_path, f"{name} = {text}")
        refused(error, f"{tmp_path / 'models.toml'}: [server] {name} = ")
        assert error.value.status == Exit.CONFIG

    @pytest.mark.parametrize("place", ["environment", "flag"])
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("host", ""),
            ("port", "http"),
            ("port", "70000"),
            ("port", "80.0"),
            ("port", ""),
            ("provider", "tpu"),
            ("max_wait", "soon"),
            ("max_wait", "nan"),
            ("max_wait", "inf"),
            ("max_wait", "1e999"),
            ("max_wait", ""),
            ("skip_missing", "yes"),
            ("skip_missing", ""),
            ("log_level", "loud"),
            ("log_level", "loud\nand clear"),
        ],
    )
    def test_a_wrong_text(self, tmp_path: Path, name: str, text: str, place: str) -> None:
        """A variable and a flag are named as the operator wrote them."""
        variable, flag = f"EMBEDSERVE_{name.upper()}", "--" + name.replace("_", "-")
        with pytest.raises(StartupError) as error:
            if place == "environment":
                settings_of(tmp_path, environment={variable: text})
            else:
                settings_of(tmp_path, flags={name: text})
        refused(error, f"{variable if place == 'environment' else flag} = ")

    @pytest.mark.parametrize(
        ("name", "accepted"),
        [
            ("port", "an integer 0 to 65535"),
            ("max_body_bytes", "an integer 1 to 2147483647"),
            ("max_wait", "a number 0.001 to 3600"),
            ("provider", "one of cpu, cuda"),
            ("skip_missing", "true or false"),
        ],
    )
    def test_an_error_says_what_is_accepted(self, tmp_path: Path, name: str, accepted: str) -> None:
        """What would be right stands beside what was found."""
        with pytest.raises(StartupError) as error:
            settings_of(tmp_path, flags={name: "wrong"})
        refused(error, '"wrong"', accepted)

    @pytest.mark.parametrize(
        ("text", "value"),
        [("true", True), ("True", True), ("1", True), ("false", False), ("0", False)],
    )
    def test_booleans_in_texts(self, tmp_path: Path, text: str, value: bool) -> None:
        """A variable says true or 1, false or 0."""
        environment = {"EMBEDSERVE_SKIP_MISSING": text}
        server = f"skip_missing = {toml(not value)}"
        assert settings_of(tmp_path, server, environment).skip_missing is value

    @pytest.mark.parametrize(
        "text",
        [
            "https://a,https://b",
            "https://a, https://b",
            "https://a https://b",
            " https://a,,https://b,",
        ],
    )
    def test_lists_in_texts(self, tmp_path: Path, text: str) -> None:
        """A variable separates items by commas or spaces."""
        found = settings_of(tmp_path, environment={"EMBEDSERVE_CORS_ORIGINS": text})
        assert found.cors_origins == ("https://a", "https://b")

    def test_an_integer_is_a_number(self, tmp_path: Path) -> None:
        """`max_wait = 5` needs no point."""
        assert settings_of(tmp_path, "max_wait = 5").max_wait == 5.0

    def test_an_unknown_key(self, tmp_path: Path) -> None:
        """A key that does not exist is no setting that is silently ignored."""
        with pytest.raises(StartupError) as error:
            settings_of(tmp_path, "max_wiat = 5")
        refused(error, f"{tmp_path / 'models.toml'}: [server] max_wiat", "known: host, port")

    def test_an_unknown_variable(self, tmp_path: Path) -> None:
        """A variable with our prefix that is no setting is a mistake."""
        with pytest.raises(StartupError) as error:
            settings_of(tmp_path, environment={"EMBEDSERVE_MAX_WIAT": "5"})
        refused(error, "EMBEDSERVE_MAX_WIAT", "EMBEDSERVE_MAX_WAIT")

    def test_other_variables_and_the_two_paths_are_left_alone(self, tmp_path: Path) -> None:
        """HOME, PORT, the keys, and the two paths that are read before this file change nothing."""
        environment = {
            "HOME": "/root",
            "PORT": "1",
            "XEMBEDSERVE_PORT": "2",
            "EMBEDSERVE_MODELS": "elsewhere.toml",
            "EMBEDSERVE_ARTIFACTS": "elsewhere",
            VARIABLE: "secret",
        }
        assert settings_of(tmp_path, environment=environment) == Settings()

    def test_a_wrong_value_in_the_file_is_refused_even_when_overruled(self, tmp_path: Path) -> None:
        """A mistake in models.toml does not hide behind a flag."""
        with pytest.raises(StartupError) as error:
            settings_of(tmp_path, "port = true", flags={"port": "80"})
        refused(error, "[server] port = true")

    def test_the_server_table_is_handed_on_as_given(self, tmp_path: Path) -> None:
        """`read` does not judge [server]: that is the settings' work."""
        read = models_toml.read(written(tmp_path, "[server]\nport = 'x'\n" + ONE_MODEL))
        assert isinstance(read, Config)
        assert dict(read.server) == {"port": "x"}
