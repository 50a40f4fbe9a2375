"use strict";
// The point that was clicked: its image, what is known of it, and its neighbours.

const ZOOM_FACTOR = 1.5;

function thumbButton(row, caption) {
  const image = element("img", { className: "thumb", loading: "lazy", alt: "", src: thumbOf(row) });
  image.addEventListener("load", () => sharpen(image, image.naturalWidth, image.naturalHeight));
  image.addEventListener("error", () => image.classList.add("missing"));
  const text = element("span", { className: "name", textContent: caption });
  const button = element("button", { type: "button", title: `${data.ids[row]}\n${classOf(row)}` }, image, text);
  button.dataset.row = row;
  button.addEventListener("click", () => showPoint(row));
  return button;
}

let current = null;

function showPoint(row) {
  current = row;
  markCurrent();
  byId("point").hidden = false;
  byId("point").scrollIntoView({ block: "nearest" });
  showFacts(row);
  byId("of-objects").hidden = !hasObjects(row);
  showPicture(row);
  showNeighbours(row);
}

function hidePoint() {
  current = null;
  markCurrent();
  byId("point").hidden = true;
}

function hasObjects(row) {
  return pictures.some((picture, other) => picture === pictures[row] && boxOf(other));
}

function markCurrent() {
  chart.mark(current === null ? [] : [current]);
}

async function showPicture(row) {
  const svg = byId("picture");
  svg.replaceChildren();
  const size = await sizeOf(row);
  if (row !== current) return; // another one was clicked meanwhile
  svg.toggleAttribute("hidden", !size);
  byId("no-picture").hidden = Boolean(size);
  svg.replaceChildren();
  if (!size) return;
  const [width, height] = size;
  sharpen(svg, width, height);
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

async function showNeighbours(row) {
  byId("neighbours").replaceChildren();
  const near = await neighboursOf(row);
  if (row !== current) return;
  byId("near").hidden = !near.length;
  byId("neighbours").replaceChildren(...near.map((other) => thumbButton(other, classOf(other))));
}

function showPictureAgain() {
  if (current !== null) showPicture(current);
}
