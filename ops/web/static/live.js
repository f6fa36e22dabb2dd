// Show whether the page is live, and keep relative times current. This loads before htmx: htmx
// announces its connection once, perhaps at once.
(() => {
  const state = document.getElementById("live-state");
  const words = { live: "Live", lost: "Connection lost, trying again" };
  const say = (now) => {
    if (state.dataset.state === now) return;
    state.dataset.state = now;
    state.textContent = words[now];
  };
  document.addEventListener("htmx:sse:after:connection", () => say("live"));
  for (const lost of ["before:connection", "error", "close"]) {
    document.addEventListener(`htmx:sse:${lost}`, (event) => {
      if (lost !== "before:connection" || event.detail.connection.attempt > 0) say("lost");
    });
  }
  if (!document.getElementById("live")) state.hidden = true;

  const span = (seconds) => {
    for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
      if (seconds >= size) return `${Math.round(seconds / size)} ${unit}`;
    }
    return `${Math.round(seconds)} s`;
  };
  const age = () => {
    for (const time of document.querySelectorAll("time")) {
      const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
      const text = "span" in time.dataset ? span(Math.max(seconds, 0))
        : seconds < 0 ? `in ${span(-seconds)}` : `${span(seconds)} ago`;
      if (time.textContent !== text) time.textContent = text;
    }
  };
  setInterval(age, 1000);

  document.addEventListener("keydown", (event) => {
    const search = document.getElementById("q");
    const typing = event.target.matches("input, textarea, select");
    if (event.key === "/" && search && !typing) {
      event.preventDefault();
      search.focus();
    }
  });
})();
