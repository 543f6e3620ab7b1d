const data = JSON.parse(document.getElementById("data").textContent);
const { cells, subjects, tasks } = data;
const dark = matchMedia("(prefers-color-scheme: dark)"), phone = matchMedia("(max-width: 640px)");
const byId = (id) => document.getElementById(id);
const choice = byId("choice").elements, filters = byId("filters").elements;
const FEW = 25;

function element(tag, text, parent, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text ?? "";
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent?.append(made);
  return made;
}

// What is looked at: a task, its metric, a cap, and what of the table is shown. The first view is what Clear returns to.
const first = { ...data.opening, method: "", q: "", sort: "", cols: "", all: "" };
let state = { ...first };
const subject = () => subjects.find(({ task, metric }) => task === state.task && metric === state.metric);
const metricsOf = (name) => subjects.filter(({ task }) => task === name).map(({ metric }) => metric);

// A link keeps all that is not as it was at first.
function fromLink() {
  const given = new URLSearchParams(location.hash.slice(1)), next = { ...first };
  for (const key of Object.keys(first)) if (given.has(key)) next[key] = given.get(key);
  if (!metricsOf(next.task).length) next.task = first.task;
  if (!metricsOf(next.task).includes(next.metric)) next.metric = metricsOf(next.task)[0];
  if (next.cap !== "" && !(next.cap in data.caps)) next.cap = first.cap;
  return next;
}
function link() {
  const kept = Object.entries(state).filter(([key, value]) => value !== first[key]);
  return kept.length ? `#${new URLSearchParams(kept)}` : "";
}

// The columns, those of other tasks beside those of the chosen one.
const better = (one) => (one.up ? " ↑" : " ↓");
const of = (key) => ({ key: `task:${key.name}`, title: key.name + better(subjects[key.subject]), numeric: true, wide: key.first, narrow: false,
  note: `difference to full on ${key.name}, ${key.metric}: ${subjects[key.subject].up ? "more" : "less"} is better`, subject: key.subject });
const at = data.columns.findIndex(({ key }) => key === "documents") + 1;
const columns = [...data.columns.slice(0, at), ...tasks.map(of), ...data.columns.slice(at)];
const ofCell = new Set(["kind", "method", ...Object.keys(cells)]);
function chosenColumns() {
  const wanted = state.cols ? state.cols.split(",") : null;
  return columns.filter((one) => one.key === "cell" || (wanted ? wanted.includes(one.key) :
    one.key === "cap" ? state.cap === "" : one.key === `task:${state.task}` ? false : phone.matches ? one.narrow : one.wide));
}
// [what is shown, what it sorts by]
function entry(column, i, ranks) {
  if (column.key === "rank") return ranks.has(i) ? [String(ranks.get(i)), ranks.get(i)] : null;
  if (column.key === "cap") return [cells.cap[i], cells.cap[i] === "" ? null : Number(cells.cap[i])];
  if (column.subject !== undefined) return subjects[column.subject].columns.brief[i];
  const value = ofCell.has(column.key) ? cells[column.key][i] : subject().columns[column.key][i];
  return typeof value === "string" ? [value, value] : value;
}
const sortedBy = (column, i, ranks) =>
  column.key === "difference" ? subject().columns.lost[i] : entry(column, i, ranks)?.[1] ?? null;
const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);

// The cells of the cap, with those that are shown for their bytes; ranks are among those of the cap alone.
function rows() {
  const { mark, lost } = subject().columns, all = state.cap === "";
  const there = cells.cell.map((_, i) => i).filter((i) => mark[i] !== null);
  const own = there.filter((i) => all || cells.cap[i] === state.cap);
  const ranked = own.filter((i) => mark[i] === "" && lost[i] !== null).sort((a, b) => lost[a] - lost[b]);
  const ranks = new Map();
  ranked.forEach((i, n) => ranks.set(i, n && lost[i] === lost[ranked[n - 1]] ? ranks.get(ranked[n - 1]) : n + 1));
  const beside = all ? [] : there.filter((i) => cells.cap[i] !== state.cap && data.caps[state.cap].includes(i));
  return { ranks, ranked, found: [...own, ...beside], beside: new Set(beside) };
}
function filtered({ ranks, found }) {
  const { mark, lost } = subject().columns, q = state.q.toLowerCase(), { method } = state;
  const kept = found.filter((i) => mark[i] === "full" || ((!method || cells.method[i] === method || cells.kind[i] === method) &&
    `${cells.cell[i]} cap ${cells.cap[i]}`.toLowerCase().includes(q)));
  const [key, down] = state.sort.startsWith("-") ? [state.sort.slice(1), true] : [state.sort, false];
  const column = columns.find((one) => one.key === key);
  const value = (i) => (column ? sortedBy(column, i, ranks) : lost[i]);
  return kept.sort((a, b) => {
    const [one, other] = [value(a), value(b)];
    if (!column && (mark[a] === "full") !== (mark[b] === "full")) return mark[a] === "full" ? -1 : 1;
    if (one === null || other === null) return (one === null) - (other === null);
    return (down ? -1 : 1) * compare(one, other) || a - b;
  });
}
const MARKS = { unbound: "= full", ahead: "reads ahead", same: "same run" };
function fill(cell, shown) {
  const [value, interval] = String(shown ?? "").split(/ (?=\[)/);
  cell.textContent = value;
  if (interval) cell.append(" "), element("span", interval, cell, { class: "interval" });
}
function label(parent, i, beside) {
  const other = cells.cap[i] ? "equal bytes" : "no bound";
  const mark = beside && cells.kind[i] !== "full" ? other : MARKS[subject().columns.mark[i]];
  if (beside && cells.cap[i]) parent.append(` (cap ${cells.cap[i]})`);
  if (mark) parent.append(" "), element("span", mark, parent, { class: "mark" });
}
const baseline = (column, i) => column.key === "difference" && subject().columns.mark[i] === "full" ? "baseline" : "";

function table() {
  const view = rows(), order = filtered(view), shown = chosenColumns();
  const limit = state.all ? order.length : FEW, head = document.createElement("tr"), body = document.createDocumentFragment();
  for (const column of shown) {
    const th = element("th", "", head, { class: `${column.key} ${column.numeric ? "number" : ""}`, scope: "col", title: column.note ?? "" });
    if (state.sort.replace("-", "") === column.key) th.setAttribute("aria-sort", state.sort[0] === "-" ? "descending" : "ascending");
    element("button", column.title + (["difference", "value"].includes(column.key) ? better(subject()) : ""), th, { type: "button", "data-sort": column.key });
  }
  for (const i of order.slice(0, limit)) {
    const tr = element("tr", "", body, { class: subject().columns.mark[i], "data-cell": i });
    for (const column of shown) {
      const kind = column.subject !== undefined ? "task" : column.key;
      const td = element("td", "", tr, { class: `${kind} ${column.numeric ? "number" : ""}` });
      if (column.key === "cell") {
        element("button", cells.cell[i], td, { type: "button", "aria-expanded": "false", title: "details" });
        label(td, i, view.beside.has(i));
      } else fill(td, baseline(column, i) || entry(column, i, view.ranks)?.[0]);
    }
  }
  byId("cells").tHead.replaceChildren(head);
  byId("cells").tBodies[0].replaceChildren(body);
  const [said, button] = byId("more").children, hidden = order.length - limit;
  said.textContent = `${Math.min(limit, order.length)} of ${order.length} cells`;
  button.hidden = hidden <= 0;
  best(view);
}
function best({ ranks, ranked }) {
  const { mark, lost, difference } = subject().columns, list = ranked.slice(0, 6);
  const size = (i) => cells.total_bytes[i][1], [plain] = ranked.filter((i) => cells.plain[i]).sort((a, b) => size(b) - size(a));
  if (plain !== undefined && !list.includes(plain)) list.push(plain);
  const cheap = subject().answers[state.cap]?.[2] ?? undefined;
  if (cheap !== undefined) list.unshift(cheap);
  const full = cells.cell.findIndex((_, i) => mark[i] === "full");
  const made = document.createDocumentFragment(), head = element("tr", "", made);
  for (const [text, kind] of [["#", "number"], ["cell", ""], ["Δ full [95%]", "number"], ["KiB", "number"]])
    element("th", text, head, { class: kind, scope: "col" });
  for (const i of full >= 0 ? [full, ...list] : list) {
    const tr = element("tr", "", made, { class: mark[i] });
    element("td", ranks.get(i) ?? "", tr, { class: "number" });
    const name = element("td", cells.cell[i], tr, { class: "cell" });
    if (i === cheap) label(name, i, true);
    else if (state.cap === "" && cells.cap[i]) name.append(` (cap ${cells.cap[i]})`);
    fill(element("td", "", tr, { class: "number" }), i === full ? subject().columns.value?.[i]?.[0] : difference[i]?.[0]);
    element("td", cells.total_bytes[i][0].replace(/\.\d$/, ""), tr, { class: "number" });
  }
  byId("best").querySelector("table").replaceChildren(made);
  byId("best-title").textContent = state.cap ? `The best at a cap of ${state.cap}` : "The best at any cap";
}

// A row's details.
byId("cells").addEventListener("click", (event) => {
  const sorted = event.target.closest("button[data-sort]")?.dataset.sort;
  if (sorted) return update({ sort: state.sort === sorted ? `-${sorted}` : state.sort === `-${sorted}` ? "" : sorted });
  const button = event.target.closest("td.cell > button");
  if (!button) return;
  const tr = button.closest("tr"), open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) return tr.nextElementSibling.remove();
  const row = document.createElement("tr");
  element("td", "", row, { colspan: tr.children.length }).append(details(Number(tr.dataset.cell)));
  tr.after(row);
});
function details(i) {
  const box = element("div", "", null, { class: "details" }), command = cells.prefix[i] + data.suffixes[subject().suffix];
  element("div", subject().parts > 1 ? `Run this cell again, on the first of the group's ${subject().parts} tasks:` : "Run this cell again:", box);
  const line = element("pre", command, box), copy = element("button", "Copy the command", box, { type: "button" });
  copy.addEventListener("click", () => copied(copy, command, line));
  const list = element("dl", "", box), row = subject().columns.row[i];
  const facts = { row: row && `${row} (sketch-eval reproduce ${row})`, cap: cells.cap[i], seeds: cells.seeds[i] };
  for (const column of columns) if (column.key !== "cell" && column.subject === undefined) facts[column.title] ??= entry(column, i, rows().ranks)?.[0];
  for (const [key, value] of Object.entries(facts)) if (value) element("dt", key, list), element("dd", value, list);
  return box;
}
async function copied(button, text, line) {
  const said = button.textContent;
  if (line) getSelection().selectAllChildren(line);
  // The clipboard of a page opened as a file may be closed; what is selected can then be copied by hand.
  const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  button.textContent = done ? "Copied" : line ? "Selected: press Ctrl+C" : "It is in the address bar";
  setTimeout(() => (button.textContent = said), 2000);
}

// What is shown, as CSV: every column, whichever are chosen, with the ends of the intervals.
function csv() {
  const view = rows(), ends = new Set(["value", "difference", "to_window", "to_exact", "to_reference", "way", "undercut"]);
  const head = ["cell", "cap", "kind", "method", "task", "metric", "row", "mark", "rank"], lines = [];
  const numbers = columns.filter(({ key, subject: other }) => other === undefined && !["rank", "cell", "cap"].includes(key));
  for (const { key } of numbers) head.push(key, ...(ends.has(key) ? [`${key}_low`, `${key}_high`] : []), ...(key === "undercut" ? ["undercut_by"] : []));
  for (const i of filtered(view)) {
    const { mark, row } = subject().columns;
    const line = [cells.cell[i], cells.cap[i], cells.kind[i], cells.method[i], state.task, state.metric, row[i], mark[i], view.ranks.get(i)];
    for (const column of numbers) {
      const [, value, low, high, by] = entry(column, i, view.ranks) ?? [];
      line.push(value, ...(ends.has(column.key) ? [low, high] : []), ...(column.key === "undercut" ? [by] : []));
    }
    lines.push(line);
  }
  const quoted = (value) => (/[",\n]/.test(value ?? "") ? `"${String(value).replaceAll('"', '""')}"` : value ?? "");
  return [head, ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
}
byId("csv").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  element("a", "", null, { href: url, download: `${data.name}-${state.task}-${state.metric}.csv`.replace(/[^\w.-]+/g, "_") }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
});

// The plots. Colours come from the page's style sheet, so that both change together.
function config(width) {
  const css = getComputedStyle(document.documentElement), colour = (name) => css.getPropertyValue(name).trim();
  const [text, soft, line] = ["--text", "--soft", "--line"].map(colour), below = width < 560;
  return {
    background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
    style: { front: { color: colour("--front"), strokeWidth: 1.6, strokeDash: [5, 3] }, full: { color: "#868e99" }, note: { color: soft, fontSize: 10 } },
    axis: { labelColor: soft, titleColor: text, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: 500, labelLimit: below ? 150 : 330, labelFontSize: 11 },
    header: { labelColor: text, titleColor: text, labelLimit: width },
    legend: { labelColor: text, symbolOpacity: 1, symbolSize: 70, labelLimit: 220, labelFontSize: 11, title: null,
      ...(below ? { orient: "bottom", direction: "horizontal", columns: Math.max(2, Math.floor(width / 170)) } : { orient: "right", offset: 34 }) },
  };
}
const drawn = new Map();
function unfolded({ columns, points }) {
  return points.map((line) => Object.fromEntries(columns.map((key, i) => [key, line[i]])));
}
// A specification is shared by all caps and by tasks of the same methods: its legend names what is in this panel.
function keyed({ layer, encoding = {} }, methods) {
  for (const channel of [encoding.color, encoding.shape])
    if (channel?.field === "method") channel.legend = { values: channel.scale.domain.filter((name) => methods.has(name)) };
  layer?.forEach((inner) => keyed(inner, methods));
}
async function draw(figure) {
  const name = figure.dataset.plot, plot = subject().plots[name], box = figure.querySelector(".plot");
  const turn = (drawn.get(figure)?.turn ?? 0) + 1, views = drawn.get(figure)?.views ?? [];
  drawn.set(figure, { turn, views: [] });
  let points = plot ? unfolded({ ...plot, points: plot.points ?? subject().plots[plot.of].points }) : [];
  if (points.length && points[0].panel !== "all" && "panel" in points[0] && state.cap)
    points = points.filter(({ panel }) => panel === `cap ${state.cap}`);
  figure.hidden = !points.length && name !== "bytes";
  const note = figure.querySelector(".clipped"), far = points.filter((point) => point.far).length;
  if (note) {
    const n = [...new Set(points.map((point) => point.n))];
    note.textContent = [n.length === 1 ? `n = ${n[0]} documents at each point.` : "",
      far ? `${far} ${far === 1 ? "cell lies" : "cells lie"} beyond the axis: a number with a triangle stands at its end.` : ""].join(" ").trim();
  }
  const panels = [...new Set(points.map(({ panel }) => panel))], made = [];
  const rooms = panels.map((panel) => {
    const room = element("div", "", null, { class: "panel" });
    if (panels.length > 1) element("h4", panel, room);
    made.push(room);
    return element("div", "", room);
  });
  views.forEach((view) => view.finalize());
  box.replaceChildren(...made);
  if (!points.length) box.textContent = "No cell loses a pair at this cap.";
  for (const [i, panel] of panels.entries()) {
    const spec = structuredClone(data.specs[plot.spec]), width = box.clientWidth;
    spec.datasets = { points: panel === undefined ? points : points.filter((point) => point.panel === panel) };
    keyed(spec, new Set(spec.datasets.points.map(({ method }) => method)));
    if (spec.layer) {
      Object.assign(spec, { width: "container", autosize: { type: "fit-x", contains: "padding" } });
      if (name !== "cells") spec.height = phone.matches ? 270 : 320;
    }
    const view = await vegaEmbed(rooms[i], spec, { renderer: "svg", logLevel: 1, config: config(width), tooltip: { theme: dark.matches ? "dark" : "light" },
      actions: { export: true, source: false, compiled: false, editor: false }, downloadFileName: `${name}-${state.task}` });
    if (drawn.get(figure).turn !== turn) return view.finalize();
    drawn.get(figure).views.push(view);
  }
  figure.dataset.drawn = `${state.task} ${state.metric} ${state.cap}`;
}
// Those out of sight are drawn when they come into it.
const seen = new Set(), late = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !seen.has(target)) seen.add(target), draw(target);
  }
}, { rootMargin: "400px" });
const figures = [...document.querySelectorAll("figure[data-plot]")];
function redraw() {
  seen.clear();
  for (const figure of figures) {
    figure.hidden = !subject().plots[figure.dataset.plot] && figure.dataset.plot !== "bytes";
    late.unobserve(figure);
    late.observe(figure);
  }
}

// Choosing.
function options(select, entries, value) {
  const made = entries.map(([text, key, indented]) => element("option", (indented ? "\u2003" : "") + text, null, { value: key }));
  select.replaceChildren(...made);
  select.value = value;
}
function controls() {
  const named = [...new Map(subjects.map((one) => [one.task, one])).values()], groups = named.filter(({ parts }) => parts > 1);
  const member = (one) => groups.some((group) => one !== group && one.task.startsWith(group.task) && one.parts === 1);
  options(choice.task, named.map((one) => [one.parts > 1 ? `${one.task} (mean of ${one.parts})` : one.task, one.task, member(one)]), state.task);
  options(choice.metric, metricsOf(state.task).map((metric) => [metric, metric]), state.metric);
  options(choice.cap, [["all", ""], ...Object.keys(data.caps).sort((a, b) => a - b).map((cap) => [cap, cap])], state.cap);
  const methods = [...new Set(cells.method)].filter((name) => name !== "full");
  options(filters.method, [["all", ""], ["all sketches", "sketch"], ["all without a sketch", "control"], ...methods.map((name) => [name, name])], state.method);
  if (filters.search.value !== state.q) filters.search.value = state.q;
  const shown = new Set(chosenColumns().map(({ key }) => key)), list = byId("columns").querySelector("div");
  list.replaceChildren(...columns.filter(({ key }) => key !== "cell").map((column) => {
    const line = element("label", "", null, { title: column.note ?? "" });
    const box = element("input", "", line, { type: "checkbox", name: "column", value: column.key });
    box.checked = shown.has(column.key);
    line.append(column.title);
    return line;
  }));
}
function tell() {
  const { answers } = subject(), [said, trust] = answers[state.cap] ?? answers[first.cap] ?? Object.values(answers)[0];
  for (const [id, text] of [["answer", said], ["trust", trust]])
    byId(id).replaceChildren(...text.split("`").map((part, i) => element(i % 2 ? "code" : "span", part)));
}
function update(change, remember = true) {
  const before = state;
  state = { ...state, ...change };
  if (remember) history.replaceState(null, "", link() || location.pathname + location.search);
  controls();
  tell();
  table();
  if (!drawn.size || ["task", "metric", "cap"].some((key) => before[key] !== state[key])) redraw();
}
choice.task.addEventListener("change", ({ target }) => update({ task: target.value, metric: metricsOf(target.value)[0], sort: "" }));
choice.metric.addEventListener("change", ({ target }) => update({ metric: target.value }));
choice.cap.addEventListener("change", ({ target }) => update({ cap: target.value }));
filters.method.addEventListener("change", ({ target }) => update({ method: target.value }));
filters.search.addEventListener("input", ({ target }) => update({ q: target.value }));
byId("columns").addEventListener("change", () => {
  const kept = [...byId("columns").querySelectorAll("input:checked")].map(({ value }) => value);
  update({ cols: ["cell", ...kept].join(",") });
});
byId("clear").addEventListener("click", () => update({ ...first }));
byId("link").addEventListener("click", ({ target }) => copied(target, location.href));
byId("more").querySelector("button").addEventListener("click", () => update({ all: "1" }));
for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => location.hash.includes("=") && update(fromLink(), false));
document.addEventListener("click", ({ target }) => target.closest("#columns") || byId("columns").removeAttribute("open"));
for (const media of [dark, phone]) media.addEventListener("change", () => (update({}, false), redraw()));
let resized, wide = innerWidth;
addEventListener("resize", () => {
  clearTimeout(resized);
  if (innerWidth !== wide) resized = setTimeout(() => ((wide = innerWidth), redraw()), 150);
});

update(fromLink(), false);
await draw(figures[0]);
seen.add(figures[0]);
document.documentElement.dataset.ready = "yes";
