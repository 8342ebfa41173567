"use strict";

// Tables: a click on a heading sorts by its column; without this script the table keeps its order.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => {
        if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;  // missing values come last
        const difference = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
        return ascending ? difference : -difference;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
    });
  });
}

// Images: a viewer that wipes between the original and the chosen model; without this script the gallery alone is shown.
const viewer = document.querySelector(".viewer");
if (viewer) {
  const radios = [...document.querySelectorAll("input[name='shown']")];
  const [under, over] = viewer.querySelectorAll("img");
  const [firstTag, secondTag] = viewer.querySelectorAll(".tag");
  const wipe = viewer.querySelector(".wipe");
  const range = viewer.querySelector("input[type='range']");
  const caption = viewer.querySelector(".caption");
  const sides = viewer.querySelector(".sides");
  const tiles = [...document.querySelectorAll(".tile")].map((tile) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "tile";
    Object.assign(button.dataset, tile.dataset);
    button.append(...tile.childNodes);
    tile.replaceWith(button);
    button.addEventListener("click", () => select(button));
    return button;
  });
  const jumps = [...viewer.querySelectorAll(".jump button")];
  let current = tiles[0];

  const show = () => {
    const radio = radios.find((one) => one.checked);
    const model = Number(radio.value);
    const images = [...current.querySelectorAll("img")];
    const original = images[0], other = images[model];
    const width = original.naturalWidth, height = original.naturalHeight;
    const longer = Math.max(width, height);
    const factor = longer < 192 ? Math.floor(384 / longer) : Math.min(1, 400 / longer);
    for (const [target, source] of [[under, original], [over, other]]) {
      target.src = source.src;
      target.alt = source.alt;
      target.classList.toggle("pixelated", factor > 1);
    }
    under.style.width = viewer.style.maxWidth = `${width * factor}px`;
    over.hidden = model === 0;
    for (const part of [viewer.querySelector(".edge"), range, sides, secondTag]) part.hidden = model === 0;
    firstTag.textContent = radios[0].dataset.name;
    secondTag.textContent = sides.lastElementChild.textContent = radio.dataset.name;
    caption.textContent = other.alt.replace(/^i/, "I");
    const tileOf = (jump) => tiles.find((tile) => tile.dataset.index === radio.dataset[jump]);
    for (const button of jumps) button.hidden = button.dataset.jump in radio.dataset && !tileOf(button.dataset.jump);
    tiles.forEach((tile) => tile.setAttribute("aria-pressed", String(tile === current)));
  };
  const select = (tile) => { if (tile) { current = tile; show(); } };
  const at = () => wipe.style.setProperty("--at", `${range.value}%`);

  range.addEventListener("input", at);
  const follow = (event) => {
    const box = wipe.getBoundingClientRect();
    range.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
    at();
  };
  wipe.addEventListener("pointermove", follow);
  wipe.addEventListener("pointerdown", follow);
  radios.forEach((radio) => radio.addEventListener("change", show));
  jumps.forEach((button) => button.addEventListener("click", () => {
    const step = { previous: -1, next: 1 }[button.dataset.jump];
    if (step) select(tiles[(tiles.indexOf(current) + step + tiles.length) % tiles.length]);
    else select(tiles.find((tile) => tile.dataset.index === radios.find((r) => r.checked).dataset[button.dataset.jump]));
  }));
  viewer.hidden = false;
  viewer.parentElement.classList.add("enhanced");
  at();
  const worst = jumps.find((button) => button.dataset.jump === "worst");
  show();
  if (!worst.hidden) worst.click();
}
