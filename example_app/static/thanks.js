// Shows each step as it finishes. Without this script the page reloads itself instead.
const SOON = 700;
const LATE = 10000;
const lead = document.querySelector(".lead");
const list = document.querySelector(".steps");
let pause = SOON;

function show(element, text) {
  if (element.textContent === text) return;
  element.textContent = text;
  pause = SOON;
}

async function look() {
  let over = false;
  pause = Math.min(pause * 1.2, LATE);
  try {
    const answer = await fetch(list.dataset.source, { headers: { Accept: "application/json" } });
    if (answer.status === 404) return;
    if (answer.ok) {
      const progress = await answer.json();
      over = progress.over;
      if (!progress.steps.length) location.reload();
      show(lead, progress.lead);
      progress.steps.forEach((step, number) => {
        const item = list.children[number];
        item.dataset.state = step.state;
        show(item.querySelector(".state"), step.text);
      });
    }
  } catch {
    // The server or the network is away; the next look may succeed.
  }
  if (!over) setTimeout(look, pause);
}

look();
