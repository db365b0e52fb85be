"""What the projector's commands say of arguments that are none."""

import pytest
from click.testing import CliRunner

from projector.cli import commands


@pytest.mark.parametrize(
    ("arguments", "accepted"),
    [
        (["status", "--seconds", "-1"], "0<=x<=86400"),
        (["status", "--seconds", "inf"], "0<=x<=86400"),
        (["status", "--seconds", "nan"], "0<=x<=86400"),
        (["wait", "--until", "2026-01-31T12:00:00Z", "--wait-seconds", "-1"], "0<=x<=86400"),
        (["audit", "--wait-seconds", "-1"], "0<=x<=86400"),
        (["rebuild", "user_information", "--wait-seconds", "-1"], "0<=x<=86400"),
        (["rollback", "user_information", "--wait-seconds", "inf"], "0<=x<=86400"),
        (["drop", "user_information", "--wait-seconds", "-1"], "0<=x<=86400"),
        (["dead-letters", "list", "--limit", "-1"], "0<=x<=1000000"),
        (["dead-letters", "show", "--id", "99999999999999999999"], "1<=x<=9223372036854775807"),
        (["dead-letters", "retry", "--id", "0"], "1<=x<=9223372036854775807"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_number_out_of_bounds_is_refused_with_those_that_are_accepted(arguments: list[str], accepted: str) -> None:
    refused = CliRunner().invoke(commands, arguments)
    assert refused.exit_code == 2
    assert accepted in refused.stderr
