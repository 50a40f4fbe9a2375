"use strict";
// Starts what the other scripts define: the map under the mouse and the keyboard, and the controls.

const HOVER_DWELL_MS = 125;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

const hover = { timer: 0, row: null };

const chart = new Chart(byId("chart"), {
  move(event) {
    clearTimeout(hover.timer);
    const row = chart.nearest(event);
    if (row !== hover.row) hideTooltip();
    if (row !== null) hover.timer = setTimeout(() => showTooltip(row, event.sx, event.sy), HOVER_DWELL_MS);
  },
  leave: hideTooltip,
  tap(event) {
    const row = chart.nearest(event);
    if (row !== null) showPoint(row);
  },
  select: (rows) => showSelection(rows),
});

function showTooltip(row, x, y) {
  if (hover.row === row) return;
  hover.row = row;
  const tooltip = byId("tooltip");
  const image = tooltip.querySelector("img");
  image.hidden = true;
  image.onload = () => {
    sharpen(image, image.naturalWidth, image.naturalHeight);
    image.hidden = false;
  };
  image.src = thumbOf(row);
  tooltip.querySelector("span").textContent = classOf(row);
  const { clientWidth, clientHeight } = byId("chart");
  tooltip.style.left = `${x + 165 < clientWidth ? x + 14 : x - 154}px`;
  tooltip.style.top = `${Math.max(4, Math.min(y + 10, clientHeight - 185))}px`;
  tooltip.hidden = false;
}

function hideTooltip() {
  clearTimeout(hover.timer);
  hover.row = null;
  byId("tooltip").hidden = true;
}

/** Arrows go from point to point while the map has the focus; Escape lets go of the point and the selection. */
function onKey(event) {
  if (event.key === "Escape") {
    hideTooltip();
    if (selection.rows.length) showSelection([]);
    hidePoint();
  }
  if (!(event.key in ARROWS) || !byId("chart").contains(event.target)) return;
  event.preventDefault();
  const row = current === null ? chart.middlemost() : chart.towards(current, ARROWS[event.key]);
  if (row === null) return;
  chart.reveal(row);
  showPoint(row);
}

function redraw() {
  const points = unpacked(data.projections[byId("projection").value].points, Float32Array);
  chart.draw(points, columns[byId("colouring").value]);
  showLegend();
  chart.emphasise(selection.rows);
  markCurrent();
}

function start() {
  document.title = byId("title").textContent = data.title;
  const options = (named) => named.map(({ name }, i) => element("option", { value: i, textContent: name }));
  byId("projection").append(...options(data.projections));
  byId("colouring").append(...options(columns));
  byId("colouring").value = Math.max(0, columns.findIndex(({ groups }) => groups.length > 1));
  byId("projection").addEventListener("change", redraw);
  byId("colouring").addEventListener("change", redraw);
  byId("dot-size").value = chart.size;
  byId("dot-size").addEventListener("input", (event) => chart.resize(Number(event.target.value)));
  byId("filter").addEventListener("input", filterLegend);
  byId("show-all").addEventListener("click", () => toggle(chart.groups.keys(), true));
  byId("hide-all").addEventListener("click", () => toggle(chart.groups.keys(), false));
  byId("all-objects").addEventListener("change", showPictureAgain);
  byId("zoom").addEventListener("change", showPictureAgain);
  byId("more").addEventListener("click", showMore);
  byId("clear").addEventListener("click", () => showSelection([]));
  byId("csv").addEventListener("click", () => download("selection.csv", "text/csv", asCsv(records())));
  byId("json").addEventListener("click", () =>
    download("selection.json", "application/json", JSON.stringify(records(), null, 1)));
  document.addEventListener("keydown", onKey);
  if (data.search) offerSearchByImage();
  if (data.search?.texts) offerSearchByText();
  tell(`${count.toLocaleString("en")} points`);
  redraw();
}

start();
