"use strict";
// The rows that were selected or found, to look at and to download.

const LIST_STEP = 60;

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
