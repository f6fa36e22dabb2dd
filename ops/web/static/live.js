// Show whether the page is live, and keep relative times current. This loads before htmx: htmx
// announces its connection once, perhaps at once.
(() => {
  const state = document.getElementById("live-state");
  const pause = document.getElementById("pause");
  const words = { live: "Live", lost: "Connection lost, trying again", paused: "Paused" };
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
  if (document.getElementById("live")) pause.hidden = false;
  else state.hidden = true;

  // While somebody reads, what comes waits in the connection; afterwards it is shown in its order.
  let paused = null;
  let resume = null;
  pause.addEventListener("click", () => {
    if (paused) {
      resume();
      paused = null;
    } else {
      paused = new Promise((resolve) => { resume = resolve; });
    }
    pause.textContent = paused ? "Resume" : "Pause";
    say(paused ? "paused" : "live");
  });
  document.addEventListener("htmx:sse:before:message", (event) => {
    if (paused) event.detail.waitUntil(paused);
  });

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
  // Beside UTC, the time where the reader is.
  const local = new Intl.DateTimeFormat("sv", { dateStyle: "short", timeStyle: "medium" });
  const here = () => {
    for (const beside of document.querySelectorAll(".local")) {
      const at = new Date(beside.dataset.at);
      beside.hidden = at.getTimezoneOffset() === 0;
      const [day, time] = local.format(at).split(" ");
      const text = ` · ${at.toISOString().startsWith(day) ? time : `${day} ${time}`} here`;
      if (!beside.hidden && beside.textContent !== text) beside.textContent = text;
    }
  };
  const zone = document.getElementById("zone");
  const minutes = -new Date().getTimezoneOffset();
  if (zone && minutes) {
    const two = (number) => String(Math.trunc(Math.abs(number))).padStart(2, "0");
    const offset = `${minutes < 0 ? "-" : "+"}${two(minutes / 60)}:${two(minutes % 60)}`;
    zone.hidden = false;
    zone.textContent = ` For the time where you are, write ${offset} behind it.`;
  }
  here();
  setInterval(() => {
    if (paused) return;
    age();
    here();
  }, 1000);

  document.addEventListener("keydown", (event) => {
    const search = document.getElementById("q");
    const typing = event.target.matches("input, textarea, select");
    if (event.key === "/" && search && !typing) {
      event.preventDefault();
      search.focus();
    }
  });
})();
