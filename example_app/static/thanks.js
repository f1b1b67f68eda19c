// Shows each step as it finishes. Without this script the page reloads itself instead.
const list = document.querySelector(".steps");

async function look() {
  let over = false;
  try {
    const answer = await fetch(list.dataset.source, { headers: { Accept: "application/json" } });
    if (answer.status === 404) return;
    if (answer.ok) {
      const progress = await answer.json();
      over = progress.over;
      progress.steps.forEach((step, number) => {
        const item = list.children[number];
        if (item.dataset.state === step.state) return;
        item.dataset.state = step.state;
        item.querySelector(".state").textContent = step.text;
      });
    }
  } catch {
    // The server or the network is away; the next look may succeed.
  }
  if (!over) setTimeout(look, 700);
}

look();
