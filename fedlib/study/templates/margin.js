/* Recompute a table's verdicts at another margin, from the intervals behind it. The rule is that of inference.verdict. */
const VERDICTS = ["inferior", "inconclusive", "non-inferior", "superior", "equivalent"];

function verdict(low, high, margin) {
  if (-margin < low && high < margin) return "equivalent";
  if (low > -margin) return low > 0 ? "superior" : "non-inferior";
  return high < -margin ? "inferior" : "inconclusive";
}

for (const box of document.querySelectorAll(".margin")) {
  const slider = box.querySelector("input"), intervals = JSON.parse(slider.dataset.intervals);
  const cells = box.closest(".output").querySelectorAll("td.verdict");  // a row each, in the order of the intervals
  function judge() {
    const margin = Number(slider.value), shown = String(Number(margin.toPrecision(3))), federated = [];
    cells.forEach((cell, row) => {
      const [low, high] = intervals[row].map(limit => limit ?? NaN);  // without an interval every verdict is inconclusive
      cell.textContent = verdict(low, high, margin);
      cell.classList.toggle("bad", cell.textContent == "inferior");
      cell.classList.toggle("good", !["inferior", "inconclusive"].includes(cell.textContent));
      if (cell.parentElement.cells[0].textContent.startsWith("federated")) federated.push(cell.textContent);
    });
    const counts = VERDICTS.map(word => [word, federated.filter(one => one == word).length]).filter(([, count]) => count);
    const found = counts.map(([word, count]) => word + " in " + count).join(", ");
    slider.setAttribute("aria-valuetext", shown);
    box.querySelector("output").textContent = "At a margin of " + shown + ", federated training is " + found + " of " +
      federated.length + (federated.length > 1 ? " arms." : " arm.");
  }
  slider.addEventListener("input", judge);
  box.querySelector("button").addEventListener("click", () => { slider.value = slider.defaultValue; judge(); });
  box.hidden = false;
  judge();
}
