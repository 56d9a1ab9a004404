"use strict";

// Opens, fills and searches the cards of tasks. Charts open one with
// document.dispatchEvent(new CustomEvent("open-task", { detail: NAME })), NAME as in the card's data-task.
(function () {
  const cards = [...document.querySelectorAll("details.task")];
  const store = document.getElementById("task-bodies");
  let bodies = null;

  // The pieces of all bodies, once (task_cards.py says how they are packed).
  function unpacked() {
    if (!bodies) {
      const bytes = Uint8Array.from(atob(store.textContent), (char) => char.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      bodies = new Response(stream).json();
    }
    return bodies;
  }

  async function fill(card) {
    const body = card.querySelector(".task-body");
    if (!store || body.dataset.filled) return;
    body.dataset.filled = "yes";
    try {
      // The page wrote this HTML itself, with every text of others escaped.
      const { ids, pieces } = await unpacked();
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

  document.addEventListener("open-task", (event) => {
    const card = cards.find((each) => each.dataset.task === event.detail);
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
