"""What is recorded of the program itself."""

import subprocess

from mossa_jax.run import environment


def test_the_commit_of_a_checkout_is_known_and_whether_it_was_changed(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    assert environment.commit(package) == ""
    git("init", "-q")
    # A repository around it that does not know its files says nothing of them.
    git("commit", "-q", "--allow-empty", "-m", "one")
    assert environment.commit(package) == ""
    git("add", ".")
    git("commit", "-q", "-m", "two")
    clean = environment.commit(package)
    assert len(clean) == 40
    (package / "__init__.py").write_text("x = 1")
    assert environment.commit(package) == f"{clean} and changes"
