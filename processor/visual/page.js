"use strict";
// INDEX (data/index.js): titles, chunk, domains, points, and of each query NAME, DOMAIN, ...; data/N.js calls chunk().
const [NAME, DOMAIN, CAMERA, AP, MISTAKE, CHANGE, MAPS] = [0, 1, 2, 3, 4, 5, 6];
const KINDS = ["wrong", "right", "uncounted", "unknown"], SIGNS = ["✗", "✓", "–", ""], PER_PAGE = 20;
const chunks = new Map(), arrived = new Map();
const $ = id => document.getElementById(id);
let page = 0;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);  // a text becomes a text node
  return made;
}

// ---------------------------------------------------------------- data
function chunk(number, records) { arrived.get(number)(records); }

function load(number) {
  if (!chunks.has(number)) {
    chunks.set(number, new Promise((resolve, reject) => {
      arrived.set(number, resolve);
      const script = element("script", {src: `data/${number}.js`});
      script.onerror = () => reject(new Error(`data/${number}.js is missing`));
      document.head.append(script);
    }));
  }
  return chunks.get(number);
}

const by = (column, sign) => [q => q[column] !== null, (a, b) => sign * (a[column] - b[column])];
const ORDERS = {
  worst: [() => true, (a, b) => (a[AP] ?? 2) - (b[AP] ?? 2)], best: by(AP, -1), mistake: by(MISTAKE, 1),
  lost: by(CHANGE, 1), gained: by(CHANGE, -1), maps: [q => q[MAPS], () => 0],
  name: [() => true, (a, b) => (a[NAME] < b[NAME] ? -1 : +(a[NAME] > b[NAME]))],
};

function chosen() {  // the numbers of the queries, in order
  const value = id => $(id)?.value ?? "", text = $("name").value.toLowerCase();
  const [keep, compare] = ORDERS[$("sort").value], queries = INDEX.queries;
  return [...queries.keys()].filter(i => keep(queries[i])
    && (value("domain") === "" || queries[i][DOMAIN] === +value("domain"))
    && (value("camera") === "" || queries[i][CAMERA] === +value("camera"))
    && queries[i][NAME].toLowerCase().includes(text)).sort((a, b) => compare(queries[a], queries[b]) || a - b);
}

// ---------------------------------------------------------------- cards
const percent = value => value === null ? "–" : `${(100 * value).toFixed(1)} %`;

function picture(name, title, css, ...caption) {
  const inside = name === null ? "cannot be read" : element("img", {src: `pictures/${name}`, alt: title, loading: "lazy"});
  return element("figure", {class: css, title}, element("div", {class: "picture"}, inside), ...caption);
}

function list(items) {
  const figures = items.map(([file, name, camera, distance, kind, rank], i) => {
    const late = i && rank > items[i - 1][5] + 1 ? " late" : "";
    const sign = kind === 2 ? "–" : `${SIGNS[kind]}${rank}`;
    return picture(file, `${name}, camera ${camera}, distance ${distance}`, KINDS[kind] + late,
      element("figcaption", {}, element("b", {}, sign), element("span", {}, `c${camera}`)),
      element("figcaption", {}, element("span", {}, distance.toFixed(3))));
  });
  return element("div", {class: "list", tabindex: 0, role: "group", "aria-label": "ranked gallery pictures"}, ...figures);
}

function maps(drawn) {
  return element("div", {class: "maps"}, ...drawn.map(([title, cosine, ...files]) => element("div", {},
    ...files.map(file => element("figure", {}, element("img", {src: `pictures/${file}`, alt: ""}))),
    element("p", {}, `${title}, cosine ${cosine.toFixed(3)}`))));
}

function card(number, record) {
  const q = INDEX.queries[number], title = [element("b", {}, q[NAME])];
  if (INDEX.domains.length > 1) title.push(element("span", {}, INDEX.domains[q[DOMAIN]]));
  title.push(element("span", {}, `camera ${q[CAMERA]}`));
  if (q[AP] !== null) title.push(element("span", {}, `AP ${percent(q[AP])}`));
  if (q[CHANGE] !== null) title.push(element("span", {class: q[CHANGE] < 0 ? "down" : "up"},
    `A − B: ${q[CHANGE] < 0 ? "−" : "+"}${(100 * Math.abs(q[CHANGE])).toFixed(1)} points`));
  if (q[MISTAKE] !== null) title.push(element("span", {}, `first is wrong, at ${q[MISTAKE].toFixed(3)}`));
  const rows = record.lists.flatMap(({ap, items}, run) => record.lists.length < 2 ? [list(items)]
    : [element("h3", {}, `${"AB"[run]}, AP ${percent(ap)}`), list(items)]);
  return element("article", {}, element("div", {class: "title"}, ...title), element("div", {class: "lists"},
    picture(record.picture, q[NAME], "query", element("figcaption", {}, "query")),
    element("div", {class: "rows"}, ...rows)), ...(record.maps.length ? [maps(record.maps)] : []));
}

let asked = 0;
async function show(turnTo = 0) {
  const order = chosen(), last = Math.max(0, Math.ceil(order.length / PER_PAGE) - 1), ticket = ++asked;
  page = Math.min(Math.max(turnTo, 0), last);
  const part = order.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const records = await Promise.all(part.map(async i => (await load(Math.floor(i / INDEX.chunk)))[i % INDEX.chunk]));
  if (ticket !== asked) return;  // the user has gone on
  $("cards").replaceChildren(...part.map((number, i) => card(number, records[i])));
  for (const pager of document.querySelectorAll(".pager")) {
    const turn = (text, to, css) => {
      const button = element("button", {type: "button", class: css}, text);
      button.disabled = to < 0 || to > last;
      button.onclick = async () => {
        await show(to);
        $("queries").scrollIntoView();
        (document.querySelector(`.pager .${css}:enabled`) ?? $("sort")).focus({preventScroll: true});
      };
      return button;
    };
    pager.replaceChildren(turn("← previous", page - 1, "previous"), turn("next →", page + 1, "next"), order.length
      ? `${page * PER_PAGE + 1}–${page * PER_PAGE + part.length} of ${order.length.toLocaleString("en")}`
      : "no query fits these filters");
  }
}

$("controls").addEventListener("input", () => show());
$("controls").addEventListener("submit", event => event.preventDefault());
show();

// ---------------------------------------------------------------- scatter
if (INDEX.points.length) {
  const area = $("scatter"), svg = area.querySelector("svg"), tip = $("tip");
  const dots = INDEX.points.map(([x, y, file, name, group]) => {
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [key, value] of Object.entries({cx: 1000 * x, cy: 600 * y, r: group < 0 ? 5 : 7})) dot.setAttribute(key, value);
    if (group >= 0) dot.setAttribute("class", `g${group}`);
    dot.onmouseenter = () => {
      tip.firstElementChild.src = file === null ? "data:," : `pictures/${file}`;
      tip.lastElementChild.textContent = name;
      const box = area.getBoundingClientRect(), at = dot.getBoundingClientRect();
      tip.style.left = `${Math.min(at.right - box.left + 6, box.width - 116)}px`;
      tip.style.top = `${Math.max(0, Math.min(at.top - box.top - 60, box.height - 180))}px`;
      tip.hidden = false;
    };
    dot.onmouseleave = () => { tip.hidden = true; };
    return dot;
  });
  const front = dots.filter(dot => dot.hasAttribute("class"));
  svg.append(...dots.filter(dot => !dot.hasAttribute("class")), ...front);
  for (const button of document.querySelectorAll("#groups button")) {
    button.onclick = () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of document.querySelectorAll("#groups button")) other.setAttribute("aria-pressed", on && other === button);
      area.classList.toggle("chosen", on);
      for (const dot of front) dot.classList.toggle("on", on && dot.classList.contains(`g${button.dataset.group}`));
    };
  }
}
