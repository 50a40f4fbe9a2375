"use strict";
// Whatever comes from the dataset is set as text or as an attribute, never as HTML.

const TINY_PX = 48;
const SVG = "http://www.w3.org/2000/svg";

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

/** Let an image of few pixels show them, not a blur. */
function sharpen(image, width, height) {
  image.classList.toggle("tiny", Math.max(width, height) <= TINY_PX);
}

function tell(text, wrong = false) {
  byId("told").textContent = text;
  byId("told").classList.toggle("wrong", wrong);
}
