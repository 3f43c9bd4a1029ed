"""A real JupyterLab on this machine, with a token, in folders of its own; and a browser that may go nowhere else."""

import json
import os
import re
import secrets
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from fedlib.config import ROOT

PATIENCE = 300_000
"""Milliseconds for a notebook in the smoke profile, on a machine that may be busy."""
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, seen or not
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}

OWN = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")


class Lab:
    """The server: where it is, and the folder it shows."""

    def __init__(self, folder: Path):
        self.folder, token = folder / "notebooks", secrets.token_hex(16)
        self.folder.mkdir()
        for name, settings in SETTINGS.items():
            path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings))
        own = {name: str(folder / name.lower()) for name in OWN} | {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
        environment = os.environ | own | {"PYTHONPATH": str(ROOT)}  # as if the notebooks lay in the repository
        command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
        command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={self.folder}", "--allow-root"]
        command += ["--LanguageServerManager.autodetect=False"]  # looking for them takes seconds
        self.process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        self.token, self.url, self.said = token, "", []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                self.url = found[0]
                break
        assert self.url, "".join(self.said)
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()

    def ask(self, path: str, method: str = "GET") -> bytes:
        """The answer of the server's API."""
        header = {"Authorization": f"token {self.token}"}
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, method=method, headers=header), timeout=60
        ) as got:
            return got.read()

    def close(self) -> None:
        """Shut down as File > Shut Down does: kernels first, then the server."""
        self.ask("api/shutdown", "POST")
        assert self.process.wait(60) == 0, "".join(self.said[-20:])


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    server = Lab(tmp_path_factory.mktemp("lab"))
    try:
        yield server
        server.close()
    finally:
        server.process.kill()


class Opened:
    """A notebook in a tab of JupyterLab."""

    def __init__(self, browser, lab: Lab, name: str):
        self.asked, self.lab = [], lab
        self.context = browser.new_context(viewport={"width": 1400, "height": 1000})
        self.context.set_default_timeout(PATIENCE)
        self.context.route("**/*", self._only_the_lab)
        self.page = self.context.new_page()
        self.page.goto(f"{lab.url}lab/workspaces/{Path(name).stem}/tree/{name}?reset&token={lab.token}", wait_until="commit")
        self.page.locator(
            "#jp-main-statusbar", has_text="| Idle"
        ).wait_for()  # what is asked of a kernel that starts is lost

    def _only_the_lab(self, route) -> None:
        inside = route.request.url.startswith((self.lab.url, "data:", "blob:"))
        if not inside:
            self.asked.append(route.request.url)
        route.continue_() if inside else route.abort()

    def run_all(self) -> None:
        """Run > Run All Cells."""
        self.page.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
        self.page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()

    def wait(self) -> None:
        """Until the last code cell has its number, or a cell failed."""
        self.page.wait_for_function(
            """() => {
                const all = document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt');
                const prompts = [...all].map(one => one.innerText);
                const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
                return !prompts.some(one => one.includes('*')) && (failed || /\\d/.test(prompts.at(-1)));
            }""",
            timeout=PATIENCE,
            polling=500,
        )

    def errors(self) -> list[str]:
        """Outputs that are painted red."""
        red = '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]'
        return self.page.locator(red).all_inner_texts()

    def picture(self, path: Path) -> None:
        """A picture of the whole notebook, for somebody to look at; a browser takes 16,384 pixels at most."""
        height = self.page.locator(".jp-WindowedPanel-inner").first.bounding_box()["height"]
        self.page.set_viewport_size({"width": 1400, "height": min(16_000, int(height) + 200)})
        self.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
        self.page.screenshot(path=path)

    def close(self) -> None:
        self.context.close()
        for session in json.loads(self.lab.ask("api/sessions")):
            self.lab.ask(f"api/sessions/{session['id']}", "DELETE")


@pytest.fixture
def opened(browser, lab):
    tabs = []

    def open_notebook(name: str) -> Opened:
        tabs.append(Opened(browser, lab, name))
        return tabs[-1]

    yield open_notebook
    for tab in tabs:
        tab.close()
