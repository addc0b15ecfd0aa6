"""The database of cases: its tables and their versions, in SQLite or PostgreSQL.

One transaction writes at a time, also among processes and machines: a message either joins a case or opens one, and two
writers must not both open it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Table, Text, event

from jingyin.model.errors import ConfigError, JingyinError
from jingyin.serve.memory.secret import Secret

_WRITING = 4_711_020_517  # PostgreSQL's advisory lock of the one writer
_SEAL = "jingyin cases"
_SECONDS = 5

metadata = sa.MetaData()

STATE = Table("state", metadata, Column("version", Integer), Column("seal", LargeBinary))
"""One row: the version of the tables, and a constant that only the right secret opens."""

CASES = Table(
    "cases", metadata,
    Column("id", String(16), primary_key=True),
    Column("state", String(8), nullable=False),  # open or decided
    Column("version", Integer, nullable=False),  # one more with each decision and undoing
    *(Column(name, BigInteger, nullable=False) for name in ("count", "senders", "receivers", "reports")),
    *(Column(name, Float(53), nullable=False) for name in ("first", "last", "risk")),
    Column("label", String(32), nullable=False),
    Column("action", String(8), nullable=False),
    Column("reasons", Text, nullable=False),  # lines, the first and the last empty
    Column("routes", Text, nullable=False),
    Column("hashes", Integer, nullable=False),  # in its sketch; 0 once that is gone
    *(Column(name, Float(53), nullable=False) for name in ("weight", "harm")),
    Column("decided", Float(53)),
    *(Column(name, String(32)) for name in ("decision", "decided_label", "known")),
    Column("decided_by", Text),
    Index("cases_by_harm", "state", "harm", "id"),
    Index("cases_by_last", "state", "last"),
    Index("cases_by_decision", "decided", "id"),
)  # fmt: skip
SKETCHES = Table(
    "sketches", metadata, Column("hash", BigInteger, primary_key=True),
    Column("case", String(16), ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True, index=True),
    sqlite_with_rowid=False,
)  # fmt: skip
PARTIES = Table(
    "parties", metadata, Column("case", String(16), ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(8), primary_key=True), Column("hash", BigInteger, primary_key=True),
    sqlite_with_rowid=False,
)  # fmt: skip
"""Hashes of the senders, receivers and reporters of a case."""
TEXTS = Table(
    "texts", metadata, Column("case", String(16), ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True),
    Column("hash", BigInteger, primary_key=True), Column("number", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)  # fmt: skip

STEPS: tuple[tuple[str, ...], ...] = ()
"""The statements of each migration: the first leads from version 1 to 2. New databases get the tables above."""


class StoreError(JingyinError):
    """The database can't be reached, or can't write."""

    status = 503


class Store:
    """A database, opened when it is first used; raises StoreError if it can't be."""

    def __init__(self, database: str | Path, secret: Secret) -> None:
        """`database` is the URL of a PostgreSQL, or a SQLite file, which is made."""
        self._secret, self._opened = secret, False
        self._file = database if isinstance(database, Path) else None
        if isinstance(database, Path):
            self._url = sa.URL.create("sqlite", database=str(database))
            arguments: dict[str, object] = {"timeout": _SECONDS}
        else:
            self._url = sa.make_url(database).set(drivername="postgresql+psycopg")
            arguments = {"connect_timeout": _SECONDS, "options": f"-c statement_timeout={1_000 * _SECONDS}"}
        try:
            self._engine = sa.create_engine(self._url, connect_args=arguments, pool_pre_ping=self._file is None)
        except ImportError:
            raise ConfigError("a PostgreSQL of cases needs psycopg; run: pip install 'psycopg[binary]'") from None
        if self._file:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Run one transaction, alone among all writers."""
        self.open()
        with self._told(), self._engine.begin() as connection:
            self._lock(connection)
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Run one transaction that only reads."""
        self.open()
        with self._told(), self._engine.connect().execution_options(reads=True) as connection:
            yield connection

    def open(self) -> None:
        """Make the tables, or bring them to this version.

        Raises StoreError, and ConfigError for a newer version or another secret.
        """
        if self._opened:
            return
        with self._told():
            if self._file:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600))
            with self._engine.begin() as connection:
                self._lock(connection)
                self._migrate(connection)
        self._opened = True

    def _lock(self, connection: sa.Connection) -> None:
        if not self._file:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITING)))

    def _migrate(self, connection: sa.Connection) -> None:
        newest = 1 + len(STEPS)
        if not sa.inspect(connection).has_table(STATE.name):
            metadata.create_all(connection)
            connection.execute(STATE.insert().values(version=newest, seal=self._secret.seal(_SEAL)))
            return
        version, seal = connection.execute(sa.select(STATE.c.version, STATE.c.seal)).one()
        if version > newest:
            raise ConfigError(
                f"the cases in {self.name} are of version {version}, this jingyin knows up to {newest}; "
                "upgrade jingyin, or name another database"
            )
        if self._secret.open(seal) != _SEAL:
            raise ConfigError(
                f"the cases in {self.name} were written with another secret; "
                "set state_secret to that file, or name another database"
            )
        for statement in (each for step in STEPS[version - 1 :] for each in step):
            connection.execute(sa.text(statement))
        connection.execute(STATE.update().values(version=newest))

    @property
    def name(self) -> str:
        """The file, or the URL without its password."""
        return str(self._file or self._url.render_as_string(hide_password=True))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Put errors of the database into words, without its statements, which may hold values."""
        try:
            yield
        except (sa.exc.DBAPIError, OSError) as error:
            if isinstance(error, (sa.exc.DataError, sa.exc.IntegrityError, sa.exc.ProgrammingError)):
                raise
            self._opened = False  # it may be another database when it is back
            cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig else error
            name = getattr(cause, "sqlite_errorname", "") or type(cause).__name__
            why = f"the {'disk is full' if name in ('SQLITE_FULL', 'DiskFull') else 'database fails'} ({name})"
            raise StoreError(f"the cases in {self.name} can't be used: {why}; nothing was changed") from None


def _prepare_sqlite(connection: object, _: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # BEGIN is ours
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]


def _begin_sqlite(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
