(() => {
  "use strict";
  const [filter, kind, search, matches] = ["filter", "kind", "search", "matches"].map((id) => document.getElementById(id));
  if (!filter) return;
  const tasks = [...document.querySelectorAll("[data-kind]")].map((element) => [element, element.textContent.toLowerCase()]);
  const show = () => {
    const words = search.value.trim().toLowerCase();
    for (const [element, text] of tasks) {
      element.hidden = (kind.value && element.dataset.kind !== kind.value) || !text.includes(words);
    }
    const count = tasks.filter(([element]) => !element.hidden).length;
    matches.textContent = kind.value || words ? `${count} of the ${tasks.length} entries below` : "";
  };
  filter.addEventListener("input", show);
  filter.addEventListener("submit", (event) => event.preventDefault());
  filter.hidden = false;
  show();
})();
