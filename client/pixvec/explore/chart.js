"use strict";
// The map: points on a Bokeh figure.

const PICK_RADIUS_PX = 14;
const SHOWN = 0.8;
const FADED = 0.06;

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
    // The place around it has the focus, and shows that it has; two stops of Tab would be one too many.
    Bokeh.Plotting.show(this.figure, place).then(({ canvas_view: view }) => view.events_el.removeAttribute("tabindex"));
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
    return this.cells.nearest(x, y, radiusX, radiusY, (row) => !this.isHidden(row));
  }

  /** Return the shown row whose point lies next to a row's in a direction, (1, 0) being right; null: none does. */
  towards(row, [rightwards, upwards]) {
    const perX = this.figure.inner_width / (this.xRange.end - this.xRange.start);
    const perY = this.figure.inner_height / (this.yRange.end - this.yRange.start);
    let [best, least] = [null, Infinity];
    for (let other = 0; other < count; other++) {
      const [dx, dy] = [(this.xs[other] - this.xs[row]) * perX, (this.ys[other] - this.ys[row]) * perY];
      const ahead = dx * rightwards + dy * upwards;
      const aside = Math.abs(dx * upwards) + Math.abs(dy * rightwards);
      if (ahead <= 0 || aside > ahead || ahead + 2 * aside >= least || this.isHidden(other)) continue;
      [best, least] = [other, ahead + 2 * aside];
    }
    return best;
  }

  isHidden(row) {
    return this.hidden.has(this.column.group[row]);
  }

  /** Return the shown row that is nearest to the middle of what is seen; null: none is shown. */
  middlemost() {
    const x = (this.xRange.start + this.xRange.end) / 2;
    const y = (this.yRange.start + this.yRange.end) / 2;
    const [radiusX, radiusY] = [2 * (this.xRange.end - this.xRange.start), 2 * (this.yRange.end - this.yRange.start)];
    return this.cells.nearest(x, y, radiusX, radiusY, (row) => !this.isHidden(row));
  }

  /** Move what is seen so far that a row's point is in it. */
  reveal(row) {
    for (const [range, value] of [[this.xRange, this.xs[row]], [this.yRange, this.ys[row]]]) {
      const half = (range.end - range.start) / 2;
      if (value < range.start || value > range.end) range.setv({ start: value - half, end: value + half });
    }
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
