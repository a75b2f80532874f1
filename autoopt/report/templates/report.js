"use strict";
document.documentElement.classList.add("js");
document.addEventListener("DOMContentLoaded", () => {
  const value = (row, column) => {
    const text = row.cells[column].dataset.value;
    return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const status = document.getElementById(table.dataset.status);
    table.querySelectorAll("thead th").forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows];
        rows.sort((first, second) => {
          const [a, b] = [value(first, column), value(second, column)];
          const order = compare(a, b);
          return down && a !== "" && b !== "" ? -order : order;
        });
        body.append(...rows);
        status.textContent = `Sorted by ${head.textContent.trim()}, ${down ? "descending" : "ascending"}.`;
      });
    });
    const search = document.getElementById(table.dataset.search);
    const changed = document.getElementById(table.dataset.changed);
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        const keep = words.every((word) => text.includes(word)) &&
          (!changed || !changed.checked || row.classList.contains("changed"));
        row.hidden = !keep;
        shown += keep;
      }
      status.textContent = `${shown} of ${body.rows.length} rows shown.`;
    };
    search.addEventListener("input", filter);
    search.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { search.value = ""; filter(); }
    });
    if (changed) changed.addEventListener("change", filter);
  }
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", open);
  open();
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not(.long)")) details.open = true;
  });
  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(document.getElementById(button.dataset.source).textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Select the code and copy it by hand";
      }
    });
  }
});
