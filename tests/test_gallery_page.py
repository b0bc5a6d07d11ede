"""The page of a gallery's service, in a browser: the story of a user from a folder of pictures to a merge and back."""
import contextlib
import sys
from types import SimpleNamespace

import cv2
import pytest
from gallery_server import draw, embed_colours, make_vision, serving

from processor.gallery import open_gallery
from tools import gallery as tool

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("fastapi")
NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A gallery that tools/gallery.py has made: NASTY is red, twice, Bob is blue, and nobody is blue or green."""
    lines = ["path,camera,time,person"]
    seen = (("red", NASTY), ("red", NASTY), ("blue", "Bob"), ("blue", ""), ("green", ""))
    for i, (colour, person) in enumerate(seen):
        cv2.imwrite(str(tmp_path / f"{i}.png"), draw(colour)[:, :, ::-1])
        lines.append(f"{i}.png,{i % 2 + 1},{1_790_000_000_000 + i * 60_000},{person}")
    (tmp_path / "people.csv").write_text("\n".join(lines))
    model = SimpleNamespace(dim=16, info=SimpleNamespace(model_id="colours", thresholds={}),
                            embed=lambda paths: embed_colours([cv2.imread(path)[:, :, ::-1] for path in paths]))
    monkeypatch.setattr(tool, "load_embedder", lambda args: model)
    for words in (["create"], ["add", str(tmp_path / "people.csv")]):
        there = ["--gallery", str(tmp_path / "gallery"), "--model", "m"]
        monkeypatch.setattr(sys, "argv", ["gallery.py", words[0], *there, *words[1:]])
        tool.main()
    cv2.imwrite(str(tmp_path / "frame.png"), draw("grey", "red", "grey", "blue")[:, :, ::-1])
    return tmp_path


@pytest.fixture
def opened(browser, place):
    """opened(width, scheme, token) -> (tab, client) of the gallery's page; nothing may go wrong on it."""
    problems = []
    with contextlib.ExitStack() as stack:
        def open_page(width, scheme, token):
            gallery = stack.enter_context(open_gallery(place / "gallery"))
            client, _ = stack.enter_context(serving(gallery, make_vision(), token=token))
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            stack.callback(context.close)
            context.set_default_timeout(8000)
            tab = context.new_page()
            tab.on("console", lambda message: "401" in message.text or problems.append(message.text))
            tab.on("pageerror", lambda error: problems.append(str(error)))
            tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
            tab.goto(f"http://127.0.0.1:{client.port}/")
            return tab, client

        yield open_page
    assert problems == []


def check_layout(tab, width):
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth && i.src).length") == 0


def test_without_a_token_the_page_shows_who_is_there(opened):
    tab, _ = opened(1400, "light", None)
    playwright.expect(tab.locator("#cards strong")).to_have_text(["Bob", NASTY, "Nobody yet"])
    playwright.expect(tab.locator("#cards img")).to_have_count(2)
    check_layout(tab, 1400)


def test_people_are_found_named_merged_split_and_removed_and_each_is_undone(opened, place):
    tab, client = opened(400, "dark", "secret")
    tab.fill("#token", "secret")
    tab.keyboard.press("Enter")
    tell_story(tab, client, place)
    check_layout(tab, 400)


def tell_story(tab, client, place):
    expect = playwright.expect

    def names():
        return tab.locator("#cards strong").all_inner_texts()

    def people():
        held = client.get("/v1/people")[1]["people"]
        return {person["person"] or person["identity"]: person["rows"] for person in held}

    def wait(condition):
        for _ in range(400):
            if condition():
                return
            tab.wait_for_timeout(20)
        raise AssertionError("it did not come")

    # Who is there; a person's time line, by keyboard.
    expect(tab.locator("#facts")).to_have_text("5 pictures · 2 people · 2 of nobody yet")
    assert names() == ["Bob", NASTY, "Nobody yet"]  # names are text, whatever they look like
    tab.locator(".card").nth(1).press("Enter")
    expect(tab.locator("#timeline circle")).to_have_count(2)
    expect(tab.locator("#rows img")).to_have_count(2)
    tab.keyboard.press("Escape")

    # A frame: a box that is drawn, a box by keyboard, each with its own answer.
    tab.set_input_files("#file", place / "frame.png")
    expect(tab.locator("#heading")).to_have_text("Nearest people")  # the whole picture's
    area = tab.locator("#stage").bounding_box()
    tab.mouse.move(area["x"] + area["width"] * 0.27, area["y"] + area["height"] * 0.1)
    tab.mouse.down()
    tab.mouse.move(area["x"] + area["width"] * 0.48, area["y"] + area["height"] * 0.9, steps=3)
    tab.mouse.up()
    wait(lambda: names()[:1] == [NASTY])
    expect(tab.locator(".card .sure").first).to_have_text("✓ certainty 100.0 %")
    tab.click("#add-box")
    for key in ["Shift+ArrowLeft"] * 9 + ["ArrowRight"] * 24:
        tab.keyboard.press(key)
    wait(lambda: tab.locator("#queries button").count() == 2 and names()[0] in ("Bob", "Nobody yet"))
    tab.click("summary")  # filters are folded on a phone
    tab.fill("#cameras", "1")
    wait(lambda: names()[0] == "Bob")
    tab.fill("#cameras", "77")
    expect(tab.locator("#note")).to_contain_text("No picture fits these filters")
    tab.fill("#cameras", "")
    wait(lambda: "Nobody yet" in names())

    # Who is of nobody yet gets a name, is merged, and the merge is undone.
    tab.select_option("#known", "nobody")
    wait(lambda: set(names()) == {"Nobody yet"})
    tab.locator(".card").first.click()
    tab.fill("#to", "Robert")
    tab.click("#give-button")
    wait(lambda: people().get("Robert") == 1)
    tab.select_option("#known", "")
    wait(lambda: "Robert" in names())
    tab.locator(".card", has_text="Robert").click()
    tab.fill("#other", "Bob")
    tab.keyboard.press("Enter")
    expect(tab.locator("#sheet-title")).to_have_text("Bob")
    expect(tab.locator("#rows .row")).to_have_count(2)
    assert people() == {"Bob": 2, NASTY: 2}
    tab.click("#toast-undo")
    wait(lambda: people() == {"Bob": 1, "Robert": 1, NASTY: 2})

    # A picture is split off, another removed, and both come back.
    tab.keyboard.press("Escape")
    tab.locator(".card", has_text=NASTY).click()
    tab.locator("#rows .row").first.click()
    expect(tab.locator("circle.chosen")).to_have_count(1)
    tab.click("#split")
    wait(lambda: people()[NASTY] == 1)
    tab.click("#toast-undo")
    wait(lambda: people()[NASTY] == 2)
    expect(tab.locator("#rows .row")).to_have_count(2)
    tab.locator("#rows .row").last.press("Space")
    tab.click("#remove")
    expect(tab.locator("#rows .row")).to_have_count(1)
    tab.click("#toast-undo")
    expect(tab.locator("#rows .row")).to_have_count(2)
    tab.fill("#new-name", "Ruby")
    tab.keyboard.press("Enter")
    wait(lambda: people() == {"Bob": 1, "Robert": 1, "Ruby": 2})
    tab.click("#close")

    # The frame's boxes are added; a mistake is told.
    tab.click("#add-mode")
    tab.fill("#camera", "front")
    tab.click("#add")
    expect(tab.locator("#toast")).to_contain_text("camera: expected a whole number, got front")
    tab.fill("#camera", "3")
    tab.fill("#person", "Ruby")
    tab.click("#add")
    wait(lambda: people()["Ruby"] == 4)
    tab.click("#close-picture")
    wait(lambda: names()[-1] == "Nobody yet")
