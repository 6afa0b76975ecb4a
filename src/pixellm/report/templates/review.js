"use strict";
// Marks of rows, and the rows that fit the search. Served, a mark is saved at once; opened as a
// file, the page keeps marks in the browser and hands them out as marks.json.
const byId = (name) => document.getElementById(name);
const board = document.querySelector("main");
const cards = [...board.querySelectorAll(".card")];
const saveAt = board.dataset.saveAt;
const storeName = "pixellm-marks-" + location.pathname;

function storedMarks() {
  try {
    return JSON.parse(localStorage.getItem(storeName) || "{}");
  } catch {
    return {}; // private mode
  }
}

function allMarks() {
  return Object.fromEntries(cards.map((card) => [card.dataset.key, card.dataset.mark]));
}

function paint(card) {
  for (const button of card.querySelectorAll("button"))
    button.setAttribute("aria-pressed", String(button.dataset.mark === card.dataset.mark));
}

async function setMark(card, wanted) {
  const mark = card.dataset.mark === wanted ? "" : wanted;
  if (saveAt) {
    const body = JSON.stringify({key: card.dataset.key, mark});
    const reply = await fetch(saveAt, {method: "POST", body}).catch(() => null);
    if (!reply || !reply.ok) {
      alert("The mark could not be saved; is the review still running?");
      return;
    }
  }
  card.dataset.mark = mark;
  if (!saveAt) {
    try {
      localStorage.setItem(storeName, JSON.stringify(allMarks()));
    } catch { /* private mode */ }
  }
  paint(card);
  filter();
}

function filter() {
  const words = byId("search").value.toLowerCase().split(/\s+/);
  const show = byId("show").value;
  for (const card of cards) {
    const text = (card.textContent + " " + card.dataset.categories).toLowerCase();
    const fits = show === "all" || show === (card.dataset.mark || "open");
    card.hidden = !(fits && words.every((word) => text.includes(word)));
  }
  byId("count").textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length}`;
}

function highlight(card) {
  const figure = card.querySelector("figure");
  const layers = figure.querySelectorAll(".layer");
  for (const phrase of card.querySelectorAll("mark")) {
    const set = (on) => {
      figure.classList.toggle("one", on);
      layers[Number(phrase.dataset.mask)].classList.toggle("on", on);
    };
    phrase.tabIndex = 0;
    phrase.onmouseenter = phrase.onfocus = () => set(true);
    phrase.onmouseleave = phrase.onblur = () => set(false);
  }
}

byId("save").onclick = () => {
  const set = Object.fromEntries(Object.entries(allMarks()).filter(([, mark]) => mark));
  const link = document.createElement("a");
  const content = new Blob([JSON.stringify(set, null, 1)], {type: "application/json"});
  link.href = URL.createObjectURL(content);
  link.download = "marks.json";
  link.click();
};

const stored = saveAt ? {} : storedMarks();
for (const card of cards) {
  if (card.dataset.key in stored) card.dataset.mark = stored[card.dataset.key];
  for (const button of card.querySelectorAll("button"))
    button.onclick = () => setMark(card, button.dataset.mark);
  highlight(card);
  paint(card);
}
byId("search").oninput = byId("show").onchange = filter;
filter();
