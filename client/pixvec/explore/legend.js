"use strict";
// The legend: a button for each group of the column that colours the map.

function showLegend() {
  const counts = new Int32Array(chart.column.groups.length);
  for (const group of chart.column.group) counts[group]++;
  byId("legend").replaceChildren(...chart.column.groups.map(({ name, colour }, group) => {
    const button = element("button", { type: "button", title: `${name}\nDouble click, or Shift and click: this one alone` },
      dot(colour),
      element("span", { className: "name", textContent: name }),
      element("span", { className: "count", textContent: counts[group] }));
    button.setAttribute("aria-pressed", String(!chart.hidden.has(group)));
    button.addEventListener("click", (event) => {
      if (event.shiftKey) isolate(group);
      else toggle([group], chart.hidden.has(group));
    });
    button.addEventListener("dblclick", () => isolate(group));
    return element("li", {}, button);
  }));
  filterLegend();
}

function isolate(group) {
  toggle(chart.groups.keys(), false);
  toggle([group], true);
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
