"use strict";
// Shows the cards that fit every filter, and says how many they are.
const form = document.getElementById("filters");
const cards = [...document.querySelectorAll(".card")];

function fits(card, filters) {
  const words = (filters.get("text") || "").toLowerCase();
  return ["sort", "count", "kind"].every((name) => {
    const wanted = filters.get(name);
    return !wanted || card.dataset[name] === wanted;
  }) && card.textContent.toLowerCase().includes(words);
}

function update() {
  const filters = new FormData(form);
  for (const card of cards) card.hidden = !fits(card, filters);
  const shown = cards.filter((card) => !card.hidden).length;
  document.getElementById("shown").textContent = `${shown} of ${cards.length} answers`;
}

form.addEventListener("input", update);
form.addEventListener("submit", (event) => event.preventDefault());
update();
