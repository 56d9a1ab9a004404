"use strict";

// Opens, fills and searches the cards of tasks. A chart asks for one with the event "open-task", whose detail is a text
// that begins with the lines of a task's name.
(function () {
  const cards = [...document.querySelectorAll("details.task")];
  const store = document.getElementById("task-bodies");
  let bodies = null;

  async function fill(card) {
    const body = card.querySelector(".task-body");
    if (!store || body.dataset.filled) return;
    body.dataset.filled = "yes";
    try {
      // Unpacked once, for all cards (task_cards.py says what is in it).
      bodies = bodies || unpacked(store).then(JSON.parse);
      const { ids, pieces } = await bodies;
      // The page wrote this HTML itself, with every text of others escaped.
      body.innerHTML = pieces.map((ofCards) => ofCards[ids.indexOf(card.id)]).join("");
    } catch (error) {
      body.textContent = "This browser cannot unpack the card. Its numbers are in the tables of the folder results.";
    }
  }

  function open(card) {
    card.hidden = false;
    card.closest(".task-group").hidden = false;
    card.open = true;
    fill(card);
    card.scrollIntoView({ block: "start" });
    card.querySelector("summary").focus({ preventScroll: true });
  }

  // `toggle` does not bubble.
  document.addEventListener("toggle", (event) => {
    if (event.target.matches?.("details.task") && event.target.open) fill(event.target);
  }, true);

  // Long names are broken into lines, so blanks do not count.
  const squeezed = (text) => text.replace(/\s+/g, "");

  document.addEventListener("open-task", (event) => {
    const lines = event.detail.split("\n");
    const names = new Set(lines.map((_, i) => squeezed(lines.slice(0, i + 1).join(""))));
    const card = cards.find((each) => names.has(squeezed(each.dataset.task)));
    if (!card) return;
    history.replaceState(null, "", "#" + card.id);
    open(card);
  });

  function openLinked() {
    const name = decodeURIComponent(location.hash.slice(1));
    const card = cards.find((each) => each.id === name);
    if (card) open(card);
  }
  window.addEventListener("hashchange", openLinked);
  openLinked();

  const search = document.getElementById("task-search");
  const count = document.getElementById("task-count");
  const matches = () => cards.filter((card) => !card.hidden);

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const card of cards) {
      const text = (card.dataset.task + " " + card.dataset.cluster).toLowerCase();
      card.hidden = !words.every((word) => text.includes(word));
    }
    for (const group of document.querySelectorAll(".task-group")) {
      group.hidden = !group.querySelector("details.task:not([hidden])");
    }
    count.textContent = words.length ? matches().length + " of " + cards.length + " tasks" : "";
  }

  search.addEventListener("input", filter);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && matches().length) open(matches()[0]);
    if (event.key === "Escape") {
      search.value = "";
      filter();
    }
  });
})();
