"""Postgres refuses to run as root: who runs it instead, where we are root."""

import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path

from compose.local.errors import LocalSettingError

USER = "nobody"


@dataclass(frozen=True)
class Unprivileged:
    """A user without rights, and the words before a command that make it run as that user.

    It keeps one right, to pass folders it could not enter (a data folder or an installation under /root),
    so that no folder's permissions need to be opened for it.
    """

    user_id: int
    group_id: int
    prefix: tuple[str, ...]

    def own(self, folder: Path) -> None:
        """Give an empty folder to that user."""
        os.chown(folder, self.user_id, self.group_id)


def needed_unprivileged() -> Unprivileged | None:
    """Find the user to run Postgres as: None (ourselves) unless we are root.

    Raises LocalSettingError where root lacks the means.
    """
    if os.geteuid() != 0:
        return None
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise LocalSettingError(
            "Postgres does not run as root, and `setpriv` is not there to change the user: "
            "install the package util-linux, or run as another user"
        )
    try:
        user = pwd.getpwnam(USER)
    except KeyError as error:
        raise LocalSettingError(
            f"Postgres does not run as root, and there is no user {USER}; run as another user"
        ) from error
    words = (setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
    return Unprivileged(
        user_id=user.pw_uid,
        group_id=user.pw_gid,
        prefix=(*words, "--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
    )
