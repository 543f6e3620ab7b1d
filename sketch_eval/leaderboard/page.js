const data = JSON.parse(document.getElementById("data").textContent);
const source = Uint8Array.from(atob(document.getElementById("datatables").textContent), (c) => c.charCodeAt(0));
const url = URL.createObjectURL(new Blob([source], { type: "application/javascript" }));
const { default: DataTable } = await import(url);
URL.revokeObjectURL(url);
const dark = matchMedia("(prefers-color-scheme: dark)"), phone = matchMedia("(max-width: 640px)");
const byId = (id) => document.getElementById(id);

// The table. A number is [what is shown, what it is sorted by]; what has no number is last either way.
const last = (sign) => (a, b) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign * (a - b));
DataTable.type("quantity", { order: { asc: last(1), desc: last(-1) } });
const at = Object.fromEntries(data.columns.map(({ key }, i) => [key, i]));
const name = (text, use) =>
  use === "display" ? `<button type="button" aria-expanded="false" title="details">▸ ${text}</button>` : text;
const number = ([shown, sorted], use) => (use === "sort" || use === "type" ? sorted : shown);
const table = new DataTable("#cells", {
  data: data.rows,
  columns: data.columns.map(({ key, title, numeric }, i) => ({
    title, data: i, className: key + (numeric ? " dt-right" : " dt-left"), type: numeric ? "quantity" : "string",
    render: numeric ? number : key === "row" ? name : null,
  })),
  createdRow: (row, _, i) => data.marks[i] && row.classList.add(data.marks[i]),
  order: [], pageLength: phone.matches ? 10 : 15, lengthMenu: [10, 15, 25, 50, 100, { label: "all", value: -1 }], autoWidth: false,
  layout: { topStart: null, topEnd: null, bottomStart: "info", bottomEnd: ["pageLength", { paging: { buttons: 5, firstLast: false } }] },
});
const box = document.querySelector(".dt-layout-table > .dt-layout-cell");
Object.entries({ tabindex: "0", role: "region", "aria-label": "Table of cells" }).forEach((pair) => box.setAttribute(...pair));

const filters = byId("filters");
const selects = [...filters.querySelectorAll("select")];
// The full cache is what every cell is compared with, so no choice of cells hides it.
const kept = (i, { name, value }) =>
  !value || data.details[i][name] === value || (data.marks[i] === "full" && ["cell", "cap"].includes(name));
table.search.fixed("selects", (_, row, i) => selects.every((select) => kept(i, select)));
function filter() {
  const { task, metric } = filters.elements;
  const better = data.better[JSON.stringify([task.value, metric.value])];
  table.order(better === undefined ? [] : [[at.value, better ? "desc" : "asc"]]);
  table.search(filters.elements.search.value).draw();
}
for (const select of selects) select.addEventListener("change", filter);
filters.elements.search.addEventListener("input", filter);
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("reset", () => setTimeout(() => { selects.forEach((select) => (select.value = "")); filter(); }));
filter();

byId("cells").addEventListener("click", (event) => {
  const button = event.target.closest("td.row button");
  if (!button) return;
  const row = table.row(button.closest("tr")), open = row.child.isShown();
  open ? row.child.hide() : row.child(details(data.details[row.index()])).show();
  button.setAttribute("aria-expanded", String(!open));
  button.firstChild.data = button.firstChild.data.replace(/^./, open ? "▸" : "▾");
});
function element(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent?.append(made);
  return made;
}
function details({ command, row, cell, cap, task, metric, ...rest }) {
  const box = document.createElement("div");
  box.className = "details";
  element("div", "Run this cell again:", box);
  const line = element("pre", command, box), copy = element("button", "Copy the command", box);
  copy.type = "button";
  copy.addEventListener("click", async () => {
    getSelection().selectAllChildren(line);
    // The clipboard of a page opened as a file may be closed; what is selected can then be copied by hand.
    const done = await navigator.clipboard?.writeText(command).then(() => true, () => false);
    copy.textContent = done ? "Copied" : "Selected: press Ctrl+C";
  });
  const list = document.createElement("dl");
  for (const [key, value] of Object.entries(rest)) if (value !== "") element("dt", key, list), element("dd", value, list);
  box.append(list);
  return box;
}

// The plots. Colours come from the page's style sheet, so that both change together.
function theme() {
  const css = getComputedStyle(document.documentElement), colour = (name) => css.getPropertyValue(name).trim();
  const clear = "rgba(0,0,0,0)", line = colour("--line"), text = colour("--text");
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line };
  return { layout: {
    font: { color: text, family: "system-ui, sans-serif", size: 12 }, paper_bgcolor: clear, plot_bgcolor: clear, xaxis: axis, yaxis: axis,
    hoverlabel: { bgcolor: colour("--panel"), bordercolor: line, font: { color: text }, align: "left" },
    modebar: { bgcolor: clear, color: colour("--soft"), activecolor: text },
  } };
}
function draw() {
  document.documentElement.classList.toggle("dark", dark.matches);
  const template = theme(), small = phone.matches;
  for (const figure of document.querySelectorAll("figure[data-plot]")) {
    const select = figure.querySelector("select") ?? byId("choice");
    const plot = data.plots[figure.dataset.plot][select.value];
    figure.hidden = !plot;
    if (!plot) continue;
    const { layout } = structuredClone(plot);
    const below = small ? { orientation: "h", x: 0, xref: "container", y: 0, yref: "container", yanchor: "bottom" } : {};
    const shown = plot.data.filter((trace) => trace.showlegend !== false && trace.type !== "heatmap").length;
    const room = figure.querySelector(".plot"), width = layout.meta?.min_width > room.clientWidth ? layout.meta.min_width : undefined;
    Object.assign(layout, { template, legend: below, dragmode: small ? false : "zoom", autosize: !width, width });
    layout.height += small ? 14 * shown : 0;
    Plotly.react(room, structuredClone(plot.data), layout, {
      displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    });
  }
}
for (const select of document.querySelectorAll("#choice, figure select")) select.addEventListener("change", draw);
for (const media of [dark, phone]) media.addEventListener("change", draw);
// Plotly's own responsive mode forgets the heights where a redraw meets it.
let resized;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(draw, 150); });
draw();
document.documentElement.dataset.ready = "yes";
