"""Prints the lower bounds of pyproject.toml as constraints for pip: what `make test-oldest` installs."""

import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for line in chain(project["dependencies"], *project["optional-dependencies"].values()):
    requirement = Requirement(line)
    for bound in requirement.specifier:
        print(f"{requirement.name}=={bound.version}")
# Ray Serve before 2.60 fails with newer ones, and Ray asks for any.
print("protobuf<7")
