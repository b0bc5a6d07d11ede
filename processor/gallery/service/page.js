"use strict";
// The service's page: every answer is JSON of /v1/...; ids are text, because numbers above 2**53 would be rounded here.
const $ = id => document.getElementById(id);
const PAGE = 60, WAIT = 250;  // people at a time; ms of rest before a changed box is asked about
const state = {info: {}, picture: null, boxes: [], current: 0, answers: null, people: [], person: null, chosen: new Set()};

function element(tag, attributes = {}, ...children) {
  const made = tag === "svg" || SHAPES.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children);  // a text becomes a text node
  return made;
}
const SHAPES = new Set(["circle", "path", "rect", "text", "title", "g"]);

// ---------------------------------------------------------------- the service
async function call(path, body) {
  const token = sessionStorage.getItem("token"), headers = token ? {Authorization: `Bearer ${token}`} : {};
  const options = {headers};
  if (body !== undefined) {
    options.method = "POST";
    options.body = body instanceof FormData ? body : JSON.stringify(body);
    if (!(body instanceof FormData)) headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(path, options);
  if (answer.status === 401) return enter().then(() => call(path, body));
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `the service answers ${answer.status}`);
  return answer;
}
const json = async (path, body) => (await call(path, body)).json();

let entering = null;
function enter() {  // all who wait share the one question
  entering ??= new Promise(resolve => {
    $("door").showModal();
    $("enter").onsubmit = () => {
      sessionStorage.setItem("token", $("token").value);
      entering = null;
      resolve();
    };
  });
  return entering;
}
$("door").addEventListener("cancel", event => event.preventDefault());

function thumbnail(row) {
  const image = element("img", {class: "thumb", alt: "", loading: "lazy"}), path = `v1/thumbnails/${row}`;
  image.onerror = () => image.replaceWith(element("span", {class: "thumb"}));
  if (!sessionStorage.getItem("token")) image.src = path;
  else call(path).then(answer => answer.blob()).then(blob => { image.src = URL.createObjectURL(blob); }, image.onerror);
  return image;
}

let fading;
function tell(text, {undo = false, problem = false} = {}) {
  const toast = $("toast");
  ($("sheet").open ? $("sheet") : document.body).append(toast);  // below a modal dialog nothing can be reached
  toast.firstElementChild.textContent = text;
  toast.classList.toggle("problem", problem);
  $("toast-undo").hidden = !undo;
  toast.hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { toast.hidden = true; }, undo ? 12000 : 6000);
}

const guarded = work => async event => {
  event?.preventDefault?.();
  try { await work(event); } catch (error) { tell(error.message, {problem: true}); }
};

// ---------------------------------------------------------------- words
const number = value => Number(value).toLocaleString("en");
const many = (count, word, words = `${word}s`) => `${number(count)} ${count === 1 ? word : words}`;
const date = value => value === null ? "time not known" : new Date(value).toLocaleString([], {dateStyle: "medium", timeStyle: "short"});
const camera = value => value === null || value === -1 ? "camera not known" : `camera ${value}`;
const title = ({person, identity}) => person || (identity === null ? "Nobody yet" : `#${identity}`);
const listed = text => text.split(/[,;\s]+/).filter(Boolean);
const moment = id => $(id).value ? new Date($(id).value).getTime() : undefined;

function whole(text, what) {
  const value = Number(text);
  if (!Number.isSafeInteger(value)) throw new Error(`${what}: expected a whole number, got ${text}`);
  return value;
}

function known(text) {  // the identity that a name, or #number, means; null: a new name
  const match = /^#(\d+)$/.exec(text.trim());
  return match ? match[1] : state.people.find(person => person.person === text.trim())?.identity ?? null;
}

// ---------------------------------------------------------------- people
async function refresh() {
  state.info = await json("v1/info");
  const {people, total, nobody, whole} = await json(`v1/people?limit=${Math.max(PAGE, state.people.length)}`);
  Object.assign(state, {people, total, nobody});
  $("facts").textContent = [many(state.info.rows, "picture"), many(total, ...(whole ? ["person", "people"] : ["named person", "named people"])),
    ...(nobody ? [`${number(nobody)} of nobody yet`] : [])].join(" · ");
  $("names").replaceChildren(...people.map(person => element("option", {value: title(person)})));
  $("drop").hidden = !state.info.pictures || state.picture !== null;
  if (state.answers === null) showPeople();
}

function showPeople() {
  $("heading").textContent = "People";
  $("queries").replaceChildren();
  $("note").textContent = state.info.pictures ? state.people.length ? "Those seen last first. Drop a picture to find somebody."
    : "The gallery is empty. Drop a picture and add it." : "This service was started without a model: pictures cannot be asked about.";
  const cards = state.people.map(person => card(person.latest, person, [
    element("span", {}, many(person.rows, "picture")),
    element("span", {}, person.cameras.length > 1 ? `cameras ${person.cameras.slice(0, 6).join(", ")}` : camera(person.cameras[0])),
    element("span", {}, `last ${date(person.last)}`)]));
  if (state.nobody) cards.push(card(null, {identity: null, person: ""}, [element("span", {}, many(state.nobody, "picture"))]));
  $("cards").replaceChildren(...cards);
  $("more").hidden = state.people.length >= state.total;
}

$("more").onclick = guarded(async () => {
  state.people.push(...(await json(`v1/people?limit=${PAGE}&offset=${state.people.length}`)).people);
  showPeople();
});

function card(row, person, lines, open = () => openPerson(person.identity ?? "-1")) {
  const made = element("button", {type: "button", class: "card"}, row === null ? element("span", {class: "thumb"}) : thumbnail(row),
    element("div", {}, element("strong", {class: person.identity === null ? "nobody" : ""}, title(person)), ...lines));
  made.onclick = guarded(open);
  return made;
}

// ---------------------------------------------------------------- a picture and its boxes
function takePicture(file) {
  if (!file) return;
  if (!state.info.pictures) return tell("this service was started without a model", {problem: true});
  if (file.size > state.info.limits.body) return tell(`the picture has more than ${number(state.info.limits.body)} bytes`, {problem: true});
  URL.revokeObjectURL($("picture").src);
  Object.assign(state, {picture: file, boxes: [], current: 0});
  $("picture").onload = () => { $("work").hidden = false; $("drop").hidden = true; drawBoxes(); ask(); };
  $("picture").onerror = () => { closePicture(); tell(`${file.name}: the browser cannot show this file`, {problem: true}); };
  $("picture").src = URL.createObjectURL(file);
}

function closePicture() {
  Object.assign(state, {picture: null, boxes: [], answers: null});
  $("file").value = "";
  $("work").hidden = true;
  $("drop").hidden = false;
  drawBoxes();
  showPeople();
}

function drawBoxes() {  // a box is x0, y0, x1, y1 as parts of the picture
  for (const old of document.querySelectorAll(".box")) old.remove();
  state.boxes.forEach((box, i) => {
    const made = element("div", {class: `box${i === state.current ? " current" : ""}`, tabindex: 0, role: "group",
      "aria-label": `box ${i + 1}`}, element("b", {}, String(i + 1)), element("i"));
    made.onkeydown = event => keyBox(event, i);
    made.onfocus = () => choose(i);
    $("stage").append(made);
    place(made, box);
  });
}

function place(made, [x0, y0, x1, y1]) {
  Object.assign(made.style, {left: `${100 * x0}%`, top: `${100 * y0}%`, width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%`});
}

const within = value => Math.min(1, Math.max(0, value));
function shift([x0, y0, x1, y1], dx, dy) {
  dx = Math.min(1 - x1, Math.max(-x0, dx));
  dy = Math.min(1 - y1, Math.max(-y0, dy));
  return [x0 + dx, y0 + dy, x1 + dx, y1 + dy];
}
const stretch = ([x0, y0, x1, y1], dx, dy) => [x0, y0, Math.max(x0 + 0.02, within(x1 + dx)), Math.max(y0 + 0.02, within(y1 + dy))];

function choose(i) {
  state.current = i;
  [...document.querySelectorAll(".box")].forEach((box, j) => box.classList.toggle("current", i === j));
  if (state.answers) showAnswers();
}

function removeBox(i) {
  state.boxes.splice(i, 1);
  state.current = Math.max(0, Math.min(state.current, state.boxes.length - 1));
  drawBoxes();
  (document.querySelectorAll(".box")[state.current] ?? $("add-box")).focus();
  askSoon();
}

function keyBox(event, i) {
  const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (step) state.boxes[i] = (event.shiftKey ? stretch : shift)(state.boxes[i], step[0] / 50, step[1] / 50);
  else if (event.key === "Delete" || event.key === "Backspace") removeBox(i);
  else return;
  event.preventDefault();
  if (!step) return;
  place(event.currentTarget, state.boxes[i]);
  askSoon();
}

function addBox(box) {
  if (state.boxes.length >= state.info.limits.boxes) return tell(`at most ${state.info.limits.boxes} boxes`, {problem: true});
  state.current = state.boxes.push(box) - 1;
  drawBoxes();
}

$("stage").onpointerdown = event => {
  if (event.button) return;
  const area = $("stage").getBoundingClientRect(), target = event.target.closest(".box"), sizes = event.target.tagName === "I";
  const at = e => [within((e.clientX - area.left) / area.width), within((e.clientY - area.top) / area.height)];
  const start = at(event), boxes = [...document.querySelectorAll(".box")];
  let i = target ? boxes.indexOf(target) : null, before = target ? state.boxes[i] : null;
  event.preventDefault();
  target?.focus();
  const move = e => {
    const [x, y] = at(e), dx = x - start[0], dy = y - start[1];
    if (i === null) {
      if (Math.hypot(dx * area.width, dy * area.height) < 8) return;  // a tap
      if (state.boxes.length >= state.info.limits.boxes) return;
      addBox([0, 0, 0.02, 0.02]);
      i = state.current;
    }
    state.boxes[i] = !before ? [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])]
      : (sizes ? stretch : shift)(before, dx, dy);
    place(document.querySelectorAll(".box")[i], state.boxes[i]);
  };
  const end = () => {
    removeEventListener("pointermove", move);
    if (i === null) return;
    const [x0, y0, x1, y1] = state.boxes[i];
    if (x1 - x0 < 0.01 || y1 - y0 < 0.01) return removeBox(i);
    document.querySelectorAll(".box")[i].focus();
    if (!before || before.some((value, side) => value !== state.boxes[i][side])) askSoon();
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", end, {once: true});
  addEventListener("pointercancel", end, {once: true});
};

$("add-box").onclick = () => { addBox([0.3, 0.1, 0.7, 0.9]); document.querySelectorAll(".box")[state.current]?.focus(); askSoon(); };
$("clear-boxes").onclick = () => { Object.assign(state, {boxes: [], current: 0}); drawBoxes(); askSoon(); };
$("close-picture").onclick = closePicture;
$("file").onchange = event => takePicture(event.target.files[0]);
addEventListener("paste", event => takePicture([...event.clipboardData.files].find(file => file.type.startsWith("image/"))));
addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("dropping"); });
addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  takePicture(event.dataTransfer.files[0]);
});

function form(request) {
  const made = new FormData(), {naturalWidth: w, naturalHeight: h} = $("picture");
  if (state.boxes.length) request.boxes = state.boxes.map(([x0, y0, x1, y1]) => [x0 * w, y0 * h, x1 * w, y1 * h]);
  made.append("picture", state.picture, state.picture.name);
  made.append("request", JSON.stringify(request));
  return made;
}

// ---------------------------------------------------------------- who is nearest
function filters() {
  const where = {}, sets = $("sets").value.trim(), cameras = listed($("cameras").value);
  if (cameras.length) where.cameras = cameras.map(text => whole(text, "cameras"));
  if (sets) where.sets = [sets];
  if (moment("since") !== undefined) where.since = moment("since");
  if (moment("until") !== undefined) where.until = moment("until");
  if ($("known").value === "nobody") where.identities = [-1];
  return where;
}

let resting, asked = 0;
const askSoon = () => { clearTimeout(resting); resting = setTimeout(ask, WAIT); };
const ask = guarded(async () => {
  if (!state.picture || $("find-mode").getAttribute("aria-pressed") !== "true") return;
  const ticket = ++asked;
  document.body.classList.add("busy");
  try {
    const answer = await json("v1/search", form({k: Number($("k").value), where: filters(), re_rank: $("re-rank").checked}));
    if (ticket !== asked || !state.picture) return;  // the user has gone on
    state.answers = answer.queries;
    showAnswers();
  } finally {
    if (ticket === asked) document.body.classList.remove("busy");
  }
});

function showAnswers() {
  const query = Math.min(state.current, state.answers.length - 1), rows = state.answers[query], people = new Map();
  for (const row of rows) {  // nearest first; who is of nobody yet stands alone
    if ($("known").value === "known" && row.identity === null) continue;
    const key = row.identity ?? `row ${row.id}`;
    people.set(key, [...people.get(key) ?? [], row]);
  }
  $("heading").textContent = "Nearest people";
  $("queries").replaceChildren(...(state.answers.length > 1 ? state.answers.map((_, i) => {
    const button = element("button", {type: "button", "aria-pressed": i === query}, `Box ${i + 1}`);
    button.onclick = () => choose(i);
    return button;
  }) : []));
  $("note").textContent = !rows.length ? "No picture fits these filters." : `${many(rows.length, "nearest picture")} of ${many(people.size,
    "person", "people")}${rows[0].certified ? "" : "; an approximate search: nearer ones may be missing"}`
    + (state.info.calibrated ? "" : ". The model is not calibrated: how sure a similarity makes is not known.");
  $("cards").replaceChildren(...[...people.values()].map(answerCard));
  $("more").hidden = true;
}

const SURE = "How likely two such pictures are of one person, if one and two are equally likely beforehand; ✓: above the threshold";
function answerCard(rows) {
  const nearest = rows[0], {probability, same, similarity} = nearest;
  const kind = same ?? (probability !== null && probability > 0.5) ? "yes" : "no", sign = kind === "yes" ? "✓" : "?";
  const sure = probability !== null ? `${sign} certainty ${(100 * probability).toFixed(probability > 0.995 ? 1 : 0)} %`
    : same === null ? "" : `${sign} ${same ? "above" : "below"} the threshold`;
  return card(nearest.id, nearest, [
    element("span", {class: "figures"}, element("span", {}, "similarity"), element("b", {}, similarity.toFixed(3))),
    element("meter", {min: 0, max: 1, value: Math.max(0, similarity), "aria-label": "similarity"}),
    ...(sure ? [element("span", {class: `sure ${kind}`, title: SURE}, sure)] : []),
    element("span", {}, camera(nearest.camera)), element("span", {}, date(nearest.time)),
    ...(rows.length > 1 ? [element("span", {}, `and ${rows.length - 1} more of the nearest`)] : [])],
  () => nearest.identity === null ? openRows({identity: null, person: "", rows, total: rows.length}) : openPerson(nearest.identity));
}

$("filters").addEventListener("input", askSoon);
$("filters").addEventListener("submit", event => event.preventDefault());
for (const [mode, other] of [["find", "add"], ["add", "find"]]) {
  $(`${mode}-mode`).onclick = () => {
    $(`${mode}-mode`).setAttribute("aria-pressed", true);
    $(`${other}-mode`).setAttribute("aria-pressed", false);
    $("filter-box").hidden = mode === "add";
    $("facts-form").hidden = mode === "find";
    if (mode === "find") ask();
  };
}

$("facts-form").addEventListener("submit", guarded(async () => {
  if (!state.picture) throw new Error("choose a picture first");
  const facts = {set: $("set").value.trim()}, person = $("person").value.trim();
  if ($("camera").value.trim()) facts.camera = whole($("camera").value, "camera");
  if (moment("time") !== undefined) facts.time = moment("time");
  const {ids} = await json("v1/add", form({facts}));
  if (person) await json("v1/assign", {ids, ...target(person)});
  tell(`${many(ids.length, "picture")} added`);
  await refresh();
}));

// ---------------------------------------------------------------- one person
const target = text => known(text) === null ? {person: text} : {identity: known(text)};

async function openPerson(identity, again = false) {
  const person = await json(`v1/people/${identity}`);
  if (!again || $("sheet").open) openRows(person);  // it may have been closed meanwhile
}

function openRows(person) {
  const sheet = $("sheet"), nobody = person.identity === null;
  state.person = person;
  state.chosen = new Set(nobody && person.rows.length === 1 ? [person.rows[0].id] : []);
  $("sheet-title").textContent = title(person);
  const cameras = new Set(person.rows.map(row => row.camera)), shown = person.rows.length < person.total ? `, the last ${number(person.rows.length)} here` : "";
  $("sheet-facts").textContent = `${many(person.total, "picture")}${shown} · ${many(cameras.size, "camera")}`
    + (nobody ? ". Choose pictures of one person, and say who it is." : "");
  $("new-name").value = person.person;
  $("other").value = $("to").value = "";
  $("rename").hidden = $("merge").hidden = $("split").hidden = nobody;
  $("timeline").replaceChildren(...timeline(person.rows));
  $("rows").replaceChildren(...person.rows.map(row => {
    const made = element("button", {type: "button", class: "row", "aria-pressed": "false", title: row.name}, thumbnail(row.id),
      element("span", {}, camera(row.camera)), element("span", {}, date(row.time)));
    made.onclick = () => pick(row.id);
    return made;
  }));
  showChosen();
  if (!sheet.open) sheet.showModal();
}

function pick(id) {
  state.chosen[state.chosen.has(id) ? "delete" : "add"](id);
  showChosen();
}

function showChosen() {
  const {rows, identity} = state.person, count = state.chosen.size;
  rows.forEach((row, i) => $("rows").children[i].setAttribute("aria-pressed", state.chosen.has(row.id)));
  for (const dot of $("timeline").querySelectorAll("circle")) dot.classList.toggle("chosen", state.chosen.has(dot.dataset.id));
  $("split").disabled = !count || count === rows.length || identity === null;
  $("remove").disabled = $("give-button").disabled = !count;
  $("remove").textContent = count ? `Remove ${count}` : "Remove";
  $("choose-all").textContent = count === rows.length ? "Choose none" : "Choose all";
}

function timeline(rows) {  // a lane a camera, a dot a picture, a line from each to the next
  const timed = rows.filter(row => row.time !== null), lanes = [...new Set(timed.map(row => row.camera))].sort((a, b) => a - b);
  if (timed.length < 2) return [];
  const first = timed[0].time, span = Math.max(1, timed.at(-1).time - first);
  const narrow = innerWidth < 700, [left, width, lane] = narrow ? [104, Math.max(240, innerWidth - 64), 30] : [118, 860, 30];
  const x = row => left + 14 + (width - left - 28) * (row.time - first) / span, y = row => lane * lanes.indexOf(row.camera) + lane / 2;
  const height = lane * lanes.length, svg = element("svg", {viewBox: `0 0 ${width} ${height + 22}`, role: "img",
    "aria-label": "When which camera saw the person"});
  lanes.forEach((value, i) => svg.append(element("rect", {x: left, y: lane * i + 3, width: width - left, height: lane - 6, rx: 5}),
    element("text", {x: left - 10, y: lane * i + lane / 2 + 4, "text-anchor": "end"}, camera(value))));
  svg.append(element("path", {d: timed.map((row, i) => `${i ? "L" : "M"}${x(row).toFixed(1)} ${y(row)}`).join("")}));
  for (const row of timed) {
    const dot = element("circle", {cx: x(row).toFixed(1), cy: y(row), r: 7, "data-id": row.id}, element("title", {}, `${camera(row.camera)}, ${date(row.time)}`));
    dot.onclick = () => { pick(row.id); $("rows").children[rows.indexOf(row)].scrollIntoView({block: "nearest"}); };
    svg.append(dot);
  }
  svg.append(element("text", {x: narrow ? 0 : left, y: height + 16}, date(first)),
    element("text", {x: width, y: height + 16, "text-anchor": "end"}, date(timed.at(-1).time)));
  return [svg];
}

async function change(path, body, next = () => openPerson(state.person.identity ?? "-1", true)) {
  const {done} = await json(path, body);
  await refresh();
  if ($("sheet").open) {
    try { await next(); } catch { $("sheet").close(); }  // nothing is left of this person
  }
  if (state.answers) ask();
  tell(done, {undo: path !== "v1/undo"});
}

const leave = () => $("sheet").close(), ids = () => [...state.chosen];
$("rename").onsubmit = guarded(() => change("v1/name", {identity: state.person.identity, name: $("new-name").value}));
$("merge").onsubmit = guarded(() => {
  const into = known($("other").value);
  if (into === null) throw new Error(`nobody in the gallery is called ${$("other").value || "so"}`);
  return change("v1/merge", {into, other: state.person.identity}, () => openPerson(into, true));
});
$("give").onsubmit = guarded(() => {
  const text = $("to").value.trim();
  if (!text) throw new Error("say whose pictures these are");
  return change("v1/assign", {ids: ids(), ...target(text)}, state.person.identity === null ? leave : undefined);
});
$("split").onclick = guarded(() => change("v1/split", {ids: ids()}));
$("remove").onclick = guarded(() => change("v1/remove", {ids: ids()}, state.person.identity === null ? leave : undefined));
$("choose-all").onclick = () => {
  state.chosen = new Set(state.chosen.size === state.person.rows.length ? [] : state.person.rows.map(row => row.id));
  showChosen();
};
$("close").onclick = leave;
$("sheet").addEventListener("click", event => { if (event.target === $("sheet")) leave(); });  // beside it
$("sheet").addEventListener("close", () => document.body.append($("toast")));
const undo = guarded(() => change("v1/undo", {}));
$("undo").onclick = $("toast-undo").onclick = undo;
addEventListener("keydown", event => {
  const types = event.target.closest?.("input, select, textarea");
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !types) undo(event);
});

$("filter-box").open = !matchMedia("(max-width: 900px)").matches;
guarded(refresh)();
