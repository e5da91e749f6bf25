(() => {
  "use strict";
  document.documentElement.classList.add("js");
  const filter = document.getElementById("filter");
  const search = document.getElementById("search");
  const opener = document.getElementById("open");
  if (!filter) return;

  const lists = [...document.querySelectorAll("[data-first]")].map((list) => ({
    rows: [...list.querySelectorAll("[data-kind]")].map((element) => ({
      element,
      kind: element.dataset.kind,
      text: [...element.querySelectorAll(".id, .reason")].map((part) => part.textContent).join("\n").toLowerCase(),
    })),
    first: Number(list.dataset.first),
    all: false,
    button: document.querySelector(`[aria-controls="${list.id}"]`),
    matches: list.closest("section").querySelector(".matches"),
  }));

  const shown = () => [...document.querySelectorAll("#failing > li:not([hidden]) > details")];
  const name = () => {
    if (opener) opener.textContent = shown().every((details) => details.open) ? "Close all shown" : "Open all shown";
  };

  const show = () => {
    const kind = new FormData(filter).get("kind");
    const words = search.value.trim().toLowerCase();
    for (const list of lists) {
      let found = 0;
      for (const row of list.rows) {
        const fits = (!kind || row.kind === kind) && row.text.includes(words);
        if (fits) found += 1;
        row.element.hidden = !fits || (!list.all && found > list.first);
      }
      list.button.hidden = found <= list.first;
      list.button.textContent = list.all ? `Show the first ${list.first}` : `Show all ${found}`;
      list.button.setAttribute("aria-expanded", String(list.all));
      list.matches.textContent = kind || words ? ` ${found} of them fit the filter.` : "";
    }
    name();
  };

  filter.addEventListener("input", show);
  filter.addEventListener("submit", (event) => event.preventDefault());
  for (const list of lists) {
    list.button.addEventListener("click", () => {
      list.all = !list.all;
      show();
    });
  }
  if (opener) {
    opener.addEventListener("click", () => {
      const all = shown();
      const open = all.some((details) => !details.open);
      for (const details of all) details.open = open;
      name();
    });
  }
  show();
})();
