"""The wire's tests, as they are, against Ray Serve; conftest.NOT_HERE says which are not."""

from tests.test_serve import (
    TestAnswers,
    TestBadInput,
    TestEnd,
    TestMetrics,
    TestStart,
    test_a_signal_while_it_starts,
    test_client_that_leaves,
)
from tests.test_wire import (
    TestAliases,
    TestCors,
    TestKeys,
    TestLog,
    TestOctets,
    TestTokenize,
    aliased,
    keyed,
    test_a_deadline_that_has_passed,
    with_keys,
)

__all__ = [
    "TestAliases",
    "TestAnswers",
    "TestBadInput",
    "TestCors",
    "TestEnd",
    "TestKeys",
    "TestLog",
    "TestMetrics",
    "TestOctets",
    "TestStart",
    "TestTokenize",
    "aliased",
    "keyed",
    "test_a_deadline_that_has_passed",
    "test_a_signal_while_it_starts",
    "test_client_that_leaves",
    "with_keys",
]
