"use strict";

// Shows what a word means beside it: below the word, or above it near the foot of the window, and never beyond its edges.
// Narrow windows leave it at their foot (story.css).

(function () {
  const EDGE = 12, NARROW = 700;

  function show(event) {
    const term = event.target.closest && event.target.closest(".term");
    const box = term && term.querySelector(".definition");
    if (!box || innerWidth <= NARROW) return;
    const word = term.getClientRects()[0];
    box.style.maxWidth = "38ch";
    const { width, height } = box.getBoundingClientRect();
    const widest = document.documentElement.clientWidth - width - EDGE;
    box.style.left = Math.max(EDGE, Math.min(word.left, widest)) + "px";
    box.style.bottom = "auto";
    box.style.top = (word.bottom + height + EDGE < innerHeight ? word.bottom : Math.max(0, word.top - height)) + "px";
  }

  document.addEventListener("pointerover", show);
  document.addEventListener("focusin", show);
  addEventListener("resize", () => document.querySelectorAll(".term .definition").forEach((box) => box.removeAttribute("style")));
})();
