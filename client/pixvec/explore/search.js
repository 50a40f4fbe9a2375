"use strict";
// Search by an image or a text, where the page is served with a server that embeds them.

let searches = 0;

/** Ask for the rows nearest to an image's file or a text. */
async function search(kind, body, name) {
  const own = ++searches;
  tell("searching…");
  const answer = await fetch(`search/${kind}`, { method: "POST", body }).catch(() => null);
  const found = await answer?.json().catch(() => null);
  if (own !== searches) return; // something else is searched for meanwhile
  if (!answer?.ok || !found) {
    tell(found?.error ?? "the server does not answer: is it still running?", true);
    return;
  }
  tell("");
  const captions = new Map(found.rows.map((row, i) => [row, found.similarities[i].toFixed(3)]));
  showSelection(found.rows, `${found.rows.length} nearest to ${name}`, captions);
  chart.mark(found.rows.slice(0, 1));
}

function searchByFiles(files) {
  if (files.length) search("image", files[0], files[0].name);
}

function offerSearchByText() {
  const form = byId("search-text");
  form.hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("wanted").value.trim();
    if (text) search("text", text, `“${text}”`);
  });
}

function offerSearchByImage() {
  byId("search-image").hidden = false;
  const input = byId("search-file");
  input.addEventListener("change", () => {
    searchByFiles(input.files);
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
    searchByFiles(event.dataTransfer.files);
  });
}
