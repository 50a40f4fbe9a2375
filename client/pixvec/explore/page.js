"use strict";
// Whatever comes from the dataset is set as text or as an attribute, never as HTML.

const HOVER_DWELL_MS = 125;
const PICK_RADIUS_PX = 14;
const LIST_STEP = 60;
const ZOOM_FACTOR = 1.5;
const SHOWN = 0.8;
const FADED = 0.06;
const SVG = "http://www.w3.org/2000/svg";

// ---------------------------------------------------------------- data

function unpacked(text, Kind) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Kind(bytes.buffer);
}

const count = data.ids.length;
const pictures = unpacked(data.pictures, Int32Array);
const boxes = unpacked(data.boxes, Int32Array);
const outlineStarts = unpacked(data.outlineStarts, Int32Array);
const outlines = unpacked(data.outlines, Float32Array);
const neighbours = data.neighbours && {
  each: data.neighbours.each,
  rows: unpacked(data.neighbours.rows, Int32Array),
};
const columns = data.columns.map((column) => ({
  ...column,
  group: unpacked(column.group, Int32Array),
  codes: unpacked(column.codes, Int32Array),
  values: unpacked(column.values, Float32Array),
}));
const classes = columns[0];

const classOf = (row) => valueOf(classes, row);
const thumbOf = (row) => (data.served ? `thumb/${row}?size=128` : `thumbs/${row}.jpg`);
const imageOf = (row) => (data.served ? `image/${row}` : `images/${pictures[row]}.jpg`);

function valueOf(column, row) {
  if (column.codes.length) return column.names[column.codes[row]];
  const value = column.values[row];
  return Number.isFinite(value) ? Number(value.toPrecision(4)) : null;
}

function boxOf(row) {
  const [left, top, right, bottom] = boxes.subarray(4 * row, 4 * row + 4);
  return right > left ? { left, top, right, bottom } : null;
}

function cornersOf(row) {
  const flat = outlines.subarray(outlineStarts[row], outlineStarts[row + 1]);
  if (flat.length) return Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1]]);
  const box = boxOf(row);
  if (!box) return [];
  return [[box.left, box.top], [box.right, box.top], [box.right, box.bottom], [box.left, box.bottom]];
}

async function sizeOf(row) {
  if (!data.served) return data.sizes[pictures[row]];
  const answer = await fetch(`size/${row}`).catch(() => null);
  return answer?.ok ? answer.json() : null;
}

// ---------------------------------------------------------------- elements

const byId = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function dot(colour) {
  const made = element("span", { className: "dot" });
  made.style.background = colour;
  return made;
}

function thumbButton(row, caption) {
  const image = element("img", { className: "thumb", loading: "lazy", alt: "", src: thumbOf(row) });
  image.addEventListener("error", () => image.classList.add("missing"));
  const text = element("span", { className: "name", textContent: caption });
  const button = element("button", { type: "button", title: `${data.ids[row]}\n${classOf(row)}` }, image, text);
  button.dataset.row = row;
  button.addEventListener("click", () => showPoint(row));
  return button;
}

function tell(text, wrong = false) {
  byId("told").textContent = text;
  byId("told").classList.toggle("wrong", wrong);
}

// ---------------------------------------------------------------- the map

/** Finds the point nearest to a place, by cells of about eight points. */
class Cells {
  constructor(xs, ys, range) {
    this.xs = xs;
    this.ys = ys;
    this.range = range;
    this.side = Math.max(1, Math.round(Math.sqrt(xs.length / 8)));
    this.starts = new Int32Array(this.side * this.side + 1);
    for (let row = 0; row < xs.length; row++) this.starts[this.cell(xs[row], ys[row]) + 1]++;
    for (let i = 1; i < this.starts.length; i++) this.starts[i] += this.starts[i - 1];
    const next = this.starts.slice();
    this.rows = new Int32Array(xs.length);
    for (let row = 0; row < xs.length; row++) this.rows[next[this.cell(xs[row], ys[row])]++] = row;
  }

  column(x) {
    const { left, right } = this.range;
    return Math.min(this.side - 1, Math.max(0, Math.floor(((x - left) / (right - left)) * this.side)));
  }

  line(y) {
    const { bottom, top } = this.range;
    return Math.min(this.side - 1, Math.max(0, Math.floor(((y - bottom) / (top - bottom)) * this.side)));
  }

  cell(x, y) {
    return this.line(y) * this.side + this.column(x);
  }

  /** Return the accepted row that is nearest to (x, y), within an ellipse of these radii; null: none is. */
  nearest(x, y, radiusX, radiusY, accepted) {
    let best = null;
    let least = 1;
    for (let line = this.line(y - radiusY); line <= this.line(y + radiusY); line++) {
      for (let column = this.column(x - radiusX); column <= this.column(x + radiusX); column++) {
        const cell = line * this.side + column;
        for (let i = this.starts[cell]; i < this.starts[cell + 1]; i++) {
          const row = this.rows[i];
          const distance = ((this.xs[row] - x) / radiusX) ** 2 + ((this.ys[row] - y) / radiusY) ** 2;
          if (distance <= least && accepted(row)) [best, least] = [row, distance];
        }
      }
    }
    return best;
  }
}

function scatter(looks) {
  return new Bokeh.Scatter({ x: { field: "x" }, y: { field: "y" }, ...looks });
}

/** The Bokeh figure: a renderer for each group of the column that colours it. */
class Chart {
  constructor(place, on) {
    this.xRange = new Bokeh.Range1d();
    this.yRange = new Bokeh.Range1d();
    this.marks = new Bokeh.ColumnDataSource({ data: { x: [], y: [] } });
    this.ring = new Bokeh.GlyphRenderer({
      data_source: this.marks, glyph: scatter({ size: 18, fill_color: null, line_color: "#000", line_width: 2.5 }),
      nonselection_glyph: null,
    });
    const wheel = new Bokeh.WheelZoomTool();
    this.figure = Bokeh.Plotting.figure({
      tools: [
        new Bokeh.PanTool(), wheel, new Bokeh.BoxZoomTool(), new Bokeh.LassoSelectTool(),
        new Bokeh.BoxSelectTool(), new Bokeh.ResetTool(), new Bokeh.SaveTool(),
      ],
      active_scroll: wheel,
      x_range: this.xRange, y_range: this.yRange,
      x_axis_type: null, y_axis_type: null,
      sizing_mode: "stretch_both", min_border: 0, outline_line_color: null,
      js_event_callbacks: {
        mousemove: [(event) => on.move(event)],
        mouseleave: [() => on.leave()],
        tap: [(event) => on.tap(event)],
        selectiongeometry: [(event) => event.final && on.select(this.selectedRows())],
        reset: [() => on.select([])],
      },
    });
    this.figure.toolbar.logo = null;
    this.groups = [];
    this.size = count < 2_000 ? 9 : count < 20_000 ? 6 : 4;
    Bokeh.Plotting.show(this.figure, place);
  }

  /** Show the points of a projection in the colours of a column. */
  draw(points, column) {
    const hidden = column === this.column ? this.hidden : [];
    this.column = column;
    this.hidden = new Set();
    this.xs = new Float32Array(count);
    this.ys = new Float32Array(count);
    for (let row = 0; row < count; row++) [this.xs[row], this.ys[row]] = [points[2 * row], points[2 * row + 1]];
    const lists = column.groups.map(() => []);
    for (let row = 0; row < count; row++) lists[column.group[row]].push(row);
    this.groups = lists.map((rows, i) => this.groupOf(Int32Array.from(rows), column.groups[i].colour));
    // All at once: Bokeh lays everything out anew at each change of its renderers.
    this.figure.renderers = [...this.groups.map(({ renderer }) => renderer), this.ring];
    for (const group of hidden) this.show(group, false);
    this.fit();
  }

  groupOf(rows, colour) {
    const source = new Bokeh.ColumnDataSource({
      data: { x: Float32Array.from(rows, (row) => this.xs[row]), y: Float32Array.from(rows, (row) => this.ys[row]) },
    });
    const glyph = (alpha) => scatter({ size: this.size, fill_color: colour, fill_alpha: alpha, line_color: null });
    const renderer = new Bokeh.GlyphRenderer({
      data_source: source, glyph: glyph(SHOWN), selection_glyph: glyph(SHOWN), nonselection_glyph: glyph(FADED),
    });
    return { rows, source, renderer };
  }

  fit() {
    const edges = (values) => {
      let [low, high] = [Infinity, -Infinity];
      for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
      const border = (high - low) * 0.04 || 1;
      return [low - border, high + border];
    };
    const [left, right] = edges(this.xs);
    const [bottom, top] = edges(this.ys);
    this.xRange.setv({ start: left, end: right, reset_start: left, reset_end: right });
    this.yRange.setv({ start: bottom, end: top, reset_start: bottom, reset_end: top });
    this.cells = new Cells(this.xs, this.ys, { left, right, bottom, top });
  }

  nearest({ x, y }) {
    const radiusX = (PICK_RADIUS_PX * (this.xRange.end - this.xRange.start)) / this.figure.inner_width;
    const radiusY = (PICK_RADIUS_PX * (this.yRange.end - this.yRange.start)) / this.figure.inner_height;
    return this.cells.nearest(x, y, radiusX, radiusY, (row) => !this.hidden.has(this.column.group[row]));
  }

  /** Return where a row's point is, in pixels of the frame. */
  positionOf(row) {
    const { xRange, yRange, figure } = this;
    return {
      x: ((this.xs[row] - xRange.start) / (xRange.end - xRange.start)) * figure.inner_width,
      y: ((yRange.end - this.ys[row]) / (yRange.end - yRange.start)) * figure.inner_height,
    };
  }

  show(group, visible) {
    if (visible) this.hidden.delete(group);
    else this.hidden.add(group);
    this.groups[group].renderer.visible = visible;
  }

  resize(size) {
    this.size = size;
    for (const { renderer } of this.groups) {
      for (const glyph of [renderer.glyph, renderer.selection_glyph, renderer.nonselection_glyph]) {
        glyph.size = size;
      }
    }
  }

  selectedRows() {
    const chosen = this.groups.flatMap(({ rows, source }, i) =>
      this.hidden.has(i) ? [] : Array.from(source.selected.indices, (index) => rows[index]));
    return chosen.sort((a, b) => a - b);
  }

  /** Make the rows stand out among the others; none: all are shown alike. */
  emphasise(rows) {
    const chosen = new Set(rows);
    for (const { rows: own, source, renderer } of this.groups) {
      const indices = [];
      own.forEach((row, i) => chosen.has(row) && indices.push(i));
      source.selected.indices = indices;
      // Bokeh fades the rest of a group only where a part of it is selected.
      renderer.glyph.fill_alpha = chosen.size && !indices.length ? FADED : SHOWN;
    }
  }

  mark(rows) {
    this.marks.data = { x: rows.map((row) => this.xs[row]), y: rows.map((row) => this.ys[row]) };
  }
}

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
  image.onload = () => (image.hidden = false);
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

// ---------------------------------------------------------------- legend and controls

function showLegend() {
  const counts = new Int32Array(chart.column.groups.length);
  for (const group of chart.column.group) counts[group]++;
  byId("legend").replaceChildren(...chart.column.groups.map(({ name, colour }, group) => {
    const button = element("button", { type: "button", title: `${name}\nDouble-click: only this one` },
      dot(colour),
      element("span", { className: "name", textContent: name }),
      element("span", { className: "count", textContent: counts[group] }));
    button.setAttribute("aria-pressed", String(!chart.hidden.has(group)));
    button.addEventListener("click", () => toggle([group], chart.hidden.has(group)));
    button.addEventListener("dblclick", () => {
      toggle(chart.groups.keys(), false);
      toggle([group], true);
    });
    return element("li", {}, button);
  }));
  filterLegend();
}

function toggle(groups, visible) {
  const buttons = byId("legend").querySelectorAll("button");
  for (const group of groups) {
    chart.show(group, visible);
    buttons[group].setAttribute("aria-pressed", String(visible));
  }
}

function filterLegend() {
  const wanted = byId("filter").value.toLowerCase();
  chart.column.groups.forEach(({ name }, group) => {
    byId("legend").children[group].hidden = !name.toLowerCase().includes(wanted);
  });
}

function redraw() {
  const points = unpacked(data.projections[byId("projection").value].points, Float32Array);
  chart.draw(points, columns[byId("colouring").value]);
  showLegend();
  chart.emphasise(selection.rows);
  markCurrent();
}

// ---------------------------------------------------------------- one point

let current = null;

async function showPoint(row) {
  current = row;
  markCurrent();
  byId("point").hidden = false;
  byId("point").scrollIntoView({ block: "nearest" });
  showFacts(row);
  showNeighbours(row);
  const size = await sizeOf(row);
  if (row === current) showPicture(row, size);
}

function markCurrent() {
  chart.mark(current === null ? [] : [current]);
}

function showPicture(row, size) {
  const svg = byId("picture");
  svg.toggleAttribute("hidden", !size);
  byId("no-picture").hidden = Boolean(size);
  svg.replaceChildren();
  if (!size) return;
  const [width, height] = size;
  svg.append(drawn("image", { href: imageOf(row), width, height, preserveAspectRatio: "none" }));
  for (const other of shownObjects(row)) {
    const corners = cornersOf(other);
    if (!corners.length) continue;
    const colour = classes.groups[classes.group[other]].colour;
    const shape = drawn("polygon", { points: corners.join(" "), stroke: colour, fill: colour });
    shape.classList.add("outline");
    shape.classList.toggle("other", other !== row);
    shape.append(drawn("title", {}));
    shape.firstChild.textContent = classOf(other);
    svg.append(shape);
  }
  svg.setAttribute("viewBox", viewOf(row, width, height).join(" "));
}

function shownObjects(row) {
  if (!byId("all-objects").checked) return [row];
  const others = [];
  pictures.forEach((picture, other) => picture === pictures[row] && other !== row && others.push(other));
  return [...others, row];
}

/** Return the part of the image that is shown: x, y, width and height in its pixels. */
function viewOf(row, width, height) {
  const box = boxOf(row);
  if (!byId("zoom").checked || !box) return [0, 0, width, height];
  const grown = (low, high) => ((high - low) * (ZOOM_FACTOR - 1)) / 2;
  const [dx, dy] = [grown(box.left, box.right), grown(box.top, box.bottom)];
  return [box.left - dx, box.top - dy, box.right - box.left + 2 * dx, box.bottom - box.top + 2 * dy];
}

function showFacts(row) {
  const facts = [["id", data.ids[row]]];
  if (data.objects[row] !== null) facts.push(["object", data.objects[row]]);
  for (const column of columns) facts.push([column.name, valueOf(column, row) ?? "none"]);
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: value })]));
}

function showNeighbours(row) {
  byId("near").hidden = !neighbours;
  if (!neighbours) return;
  const near = neighbours.rows.subarray(row * neighbours.each, (row + 1) * neighbours.each);
  const others = Array.from(near).filter((other) => other !== row);
  byId("neighbours").replaceChildren(...others.map((other) => thumbButton(other, classOf(other))));
}

function showAgain() {
  if (current !== null) showPoint(current);
}

// ---------------------------------------------------------------- selection and search

const selection = { rows: [], captions: new Map(), listed: 0 };

function showSelection(rows, title = "", captions = new Map()) {
  Object.assign(selection, { rows, captions, listed: 0 });
  chart.emphasise(rows);
  byId("selection").hidden = !rows.length;
  byId("selected").textContent = title || `${rows.length} selected`;
  byId("list").replaceChildren();
  showCounts(rows);
  showMore();
  byId("selection").scrollIntoView({ block: "nearest" });
}

function showCounts(rows) {
  const counts = new Map();
  for (const row of rows) counts.set(classes.codes[row], (counts.get(classes.codes[row]) ?? 0) + 1);
  const colour = new Map(rows.map((row) => [classes.codes[row], classes.groups[classes.group[row]].colour]));
  const ordered = [...counts].sort(([, a], [, b]) => b - a);
  byId("counts").replaceChildren(...ordered.map(([code, number]) => element("li", {},
    dot(colour.get(code)),
    element("span", { className: "name", textContent: classes.names[code] }),
    element("span", { className: "count", textContent: number }))));
}

function showMore() {
  const rows = selection.rows.slice(selection.listed, selection.listed + LIST_STEP);
  byId("list").append(...rows.map((row) => thumbButton(row, selection.captions.get(row) ?? classOf(row))));
  selection.listed += rows.length;
  byId("more").hidden = selection.listed >= selection.rows.length;
}

function records() {
  return selection.rows.map((row) => ({
    index: row,
    id: data.ids[row],
    object: data.objects[row],
    x: chart.xs[row],
    y: chart.ys[row],
    ...Object.fromEntries(columns.map((column) => [column.name, valueOf(column, row)])),
  }));
}

function asCsv(rows) {
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const lines = [Object.keys(rows[0]), ...rows.map(Object.values)];
  return lines.map((line) => line.map((value) => quoted(String(value ?? ""))).join(",") + "\r\n").join("");
}

function download(name, kind, text) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

let searches = 0;

async function search(file) {
  const own = ++searches;
  tell("searching…");
  const answer = await fetch("search", { method: "POST", body: file }).catch(() => null);
  const found = await answer?.json().catch(() => null);
  if (own !== searches) return; // another image was chosen meanwhile
  if (!answer?.ok || !found) {
    tell(found?.error ?? "the server does not answer: is it still running?", true);
    return;
  }
  tell("");
  const captions = new Map(found.rows.map((row, i) => [row, found.similarities[i].toFixed(3)]));
  showSelection(found.rows, `${found.rows.length} nearest to ${file.name}`, captions);
  chart.mark(found.rows.slice(0, 1));
}

function offerSearch() {
  byId("search").hidden = false;
  const input = byId("search-file");
  input.addEventListener("change", () => {
    if (input.files.length) search(input.files[0]);
    input.value = "";
  });
  const place = byId("chart");
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("dropping");
  });
  place.addEventListener("dragleave", () => place.classList.remove("dropping"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("dropping");
    if (event.dataTransfer.files.length) search(event.dataTransfer.files[0]);
  });
}

// ---------------------------------------------------------------- start

function start() {
  document.title = byId("title").textContent = data.title;
  const options = (named) => named.map(({ name }, i) => element("option", { value: i, textContent: name }));
  byId("projection").append(...options(data.projections));
  byId("colouring").append(...options(columns));
  byId("projection").addEventListener("change", redraw);
  byId("colouring").addEventListener("change", redraw);
  byId("dot-size").value = chart.size;
  byId("dot-size").addEventListener("input", (event) => chart.resize(Number(event.target.value)));
  byId("filter").addEventListener("input", filterLegend);
  byId("show-all").addEventListener("click", () => toggle(chart.groups.keys(), true));
  byId("hide-all").addEventListener("click", () => toggle(chart.groups.keys(), false));
  byId("all-objects").addEventListener("change", showAgain);
  byId("zoom").addEventListener("change", showAgain);
  byId("more").addEventListener("click", showMore);
  byId("clear").addEventListener("click", () => showSelection([]));
  byId("csv").addEventListener("click", () => download("selection.csv", "text/csv", asCsv(records())));
  byId("json").addEventListener("click", () =>
    download("selection.json", "application/json", JSON.stringify(records(), null, 1)));
  if (data.search) offerSearch();
  tell(`${count.toLocaleString("en")} points`);
  redraw();
}

start();
