# Recompute a finished study's statistics from its ledger with R, and compare with its report.
#
#     Rscript recompute.R STUDY
#
# STUDY holds study.json, trials/*/result.json, effects.csv and report.md of a one-stage 2x2x2
# factorial. Definitions are those of docs/statistics.md; nothing of the package is used, only R's
# t.test, p.adjust, lm and aov, and enumeration of closed tests, sign flips and orders. Needs
# r-cran-jsonlite. Exits with 1 where anything differs.

study <- commandArgs(trailingOnly = TRUE)[1]
plan <- jsonlite::fromJSON(file.path(study, "study.json"), simplifyVector = FALSE)
report <- readLines(file.path(study, "report.md"), encoding = "UTF-8")
written <- read.csv(file.path(study, "effects.csv"), stringsAsFactors = FALSE)
metrics <- c(contrastive = "contrastive", perplexity = "perplexity", coca = "coca")
wrong <- 0

# ---- the ledger: a matrix of test losses per metric, seeds x cells ------------------------------
files <- list.files(file.path(study, "trials"), "^result\\.json$",
                    recursive = TRUE, full.names = TRUE)
records <- lapply(files, jsonlite::fromJSON)
names(records) <- sapply(records, `[[`, "key")
stopifnot(length(records) == length(plan$trials))
keys <- sapply(plan$trials, function(trial) trial$stages[[1]]$key)
cells <- sapply(plan$trials, `[[`, "name")
seeds <- sapply(plan$trials, `[[`, "seed") %% 1000  # the A/A cell's are the others' plus 1000
losses <- lapply(metrics, function(metric) {
  values <- sapply(keys, function(key) records[[key]]$metrics[[paste0("test/", metric)]])
  tapply(values, list(seeds, cells), identity)
})

# ---- contrasts: t tests, equivalence, sign flips, adjusted p, verdicts --------------------------
gain <- function(loss, from, to) 100 * (loss[, from] - loss[, to]) / loss[, from]
over_pairs <- function(pairs, f) sapply(pairs, function(pair) f(pair[[1]], pair[[2]]))
summarise <- function(d) {
  test <- t.test(d)
  list(estimate = mean(d), low = test$conf.int[1], high = test$conf.int[2], p = test$p.value)
}
sign_flip <- function(d) {
  signs <- as.matrix(expand.grid(rep(list(c(-1, 1)), length(d))))  # all 2^n
  mean(abs(signs %*% d) >= abs(sum(d)) * (1 - 1e-12))
}
analyse <- function(contrast, loss, margin = plan$smallest_effect) {
  d <- rowMeans(over_pairs(contrast$pairs, function(a, b) gain(loss, a, b)))
  above <- t.test(d, mu = -margin, alternative = "greater")$p.value
  below <- t.test(d, mu = margin, alternative = "less")$p.value
  correlations <- over_pairs(contrast$pairs, function(a, b) cor(loss[, a], loss[, b]))
  data.frame(contrast = contrast$name, seeds = paste(rownames(loss), collapse = " "),
             summarise(d), standard_deviation = sd(d), p_sign_flip = sign_flip(d),
             p_tost = max(above, below), correlation = mean(correlations))
}
# The graphical procedure as the closed test that it is a short cut for: in each set of hypotheses
# the primary has 4/5 of the level and the others 1/5 in equal parts; one side alone has it all.
closed <- function(p, primary) {
  sets <- as.matrix(expand.grid(rep(list(c(FALSE, TRUE)), length(p))))[-1, , drop = FALSE]
  smallest <- apply(sets, 1, function(set) {
    others <- sum(set & !primary)
    both <- any(set & primary) && others
    share <- if (both) ifelse(primary, 0.8, 0.2 / others) else 1 / max(others, 1)
    min((p / share)[set])
  })
  pmin(1, sapply(seq_along(p), function(i) max(smallest[sets[, i]])))
}
family <- function(metric, contrasts) {
  e <- do.call(rbind, lapply(contrasts, analyse, losses[[metric]]))
  e$p_adjusted <- closed(e$p, sapply(contrasts, `[[`, "primary"))
  unclear <- ifelse(e$p_tost <= 0.05, "equivalent", "inconclusive")
  clear <- ifelse(e$estimate > 0, "improved", "worse")
  e$verdict <- ifelse(e$p_adjusted <= 0.05, clear, unclear)
  cbind(metric = metric, e)
}
effects <- do.call(rbind, c(lapply(metrics, family, plan$contrasts),
                            lapply(metrics, family, list(plan$noise))))

# ---- factorial: Shapley values by all orders, terms by lm and aov, the additive gap -------------
swaps <- sort(unique(unlist(plan$factorial)))
cell_with <- function(set) names(Filter(function(own) setequal(unlist(own), set), plan$factorial))
gains <- function(metric, set) gain(losses[[metric]], cell_with(character()), cell_with(set))
shapley <- function(metric) {
  every <- asplit(unname(as.matrix(expand.grid(swaps, swaps, swaps))), 1)
  orders <- Filter(function(order) !anyDuplicated(order), every)
  added <- function(swap, order, before = order[seq_len(match(swap, order) - 1)])
    gains(metric, c(before, swap)) - gains(metric, before)
  do.call(rbind, lapply(setNames(swaps, swaps), function(swap)
    data.frame(summarise(rowMeans(sapply(orders, added, swap = swap))))))
}
terms_of <- function(metric) {
  design <- setNames(expand.grid(rep(list(c(-1, 1)), 3)), swaps)
  g <- t(apply(design, 1, function(x) gains(metric, swaps[x > 0])))  # settings x seeds
  formula <- paste(swaps, collapse = " * ")
  values <- 2 * coef(lm(as.formula(paste("g ~", formula)), design))[-1, ]
  found <- do.call(rbind, apply(values, 1, function(d) data.frame(summarise(d))))
  # The same p from an analysis of variance, seeds as blocks, each term against its own error.
  long <- data.frame(lapply(design, function(x) factor(rep(x, ncol(g)))),
                     y = c(g), block = factor(c(col(g))))
  model <- sprintf("y ~ %s + Error(block / (%s))", formula, formula)
  strata <- summary(aov(as.formula(model), long))
  p <- sapply(strata[paste0("Error: block:", rownames(found))], function(s) s[[1]][["Pr(>F)"]][1])
  stopifnot(all.equal(unname(p), found$p, tolerance = 1e-8))
  for (group in split(seq_along(p), rownames(found) %in% swaps))
    found$p[group] <- p.adjust(found$p[group], "holm")
  found
}

# ---- compare with effects.csv -------------------------------------------------------------------
key <- function(table) paste(table$contrast, table$metric)
stopifnot(setequal(key(written), key(effects)), !anyDuplicated(key(written)),
          setequal(names(written), names(effects)))
mine <- effects[match(key(written), key(effects)), names(written)]
cat(R.version.string, "|", nrow(written), "rows,", nrow(losses$coca), "seeds\neffects.csv\n")
for (column in names(written)) {
  a <- written[[column]]; b <- mine[[column]]
  off <- sum(if (is.numeric(b)) !(abs(a - b) <= 1e-9) else a != b)
  size <- if (is.numeric(b)) sprintf("by at most %.1e,", max(abs(a - b))) else ""
  cat(sprintf("  %-13s %s %d of %d differ\n", column, size, off, length(a)))
  wrong <- wrong + off
}

# ---- compare with report.md: every figure printed as there --------------------------------------
interval <- function(e, unit = "") sprintf("%+.2f%s [%+.2f, %+.2f]", e$estimate, unit, e$low, e$high)
row <- function(...) paste0("| ", paste(..., sep = " | "), " |")
expect <- function(what, lines) {
  missing <- lines[!sapply(lines, function(line) any(grepl(line, report, fixed = TRUE)))]
  found <- length(lines) - length(missing)
  cat(sprintf("  %-28s %d of %d as printed\n", what, found, length(lines)))
  cat(sprintf("    not printed: %s\n", missing), sep = "")
  wrong <<- wrong + length(missing)
}
table_rows <- function(of, tested = TRUE) {
  columns <- sapply(lapply(metrics, of), function(e)
    paste0(interval(e), if (tested) sprintf(" p=%.2g", e$p)))
  row(gsub(":", " x ", rownames(of("coca"))), columns[, 1], columns[, 2], columns[, 3])
}
cat("report.md\n")
expect("effects", sapply(c(plan$contrasts, list(plan$noise)), function(contrast) {
  e <- effects[effects$contrast == contrast$name, ]
  again <- contrast$name == plan$noise$name
  name <- paste0(contrast$name, if (again) " (A/A)")
  if (contrast$primary) name <- sprintf("**%s (primary)**", contrast$name)
  row(name, paste(sprintf("%s p=%.2g", interval(e), e$p_adjusted), collapse = " | "),
      if (again) "-" else sprintf("%+.2f", e$correlation[3]), nrow(losses$coca), e$verdict[3])
}))
expect("Shapley values", table_rows(shapley, tested = FALSE))
expect("main effects, interactions", table_rows(terms_of))
gap <- gains("coca", swaps) - rowSums(sapply(swaps, gains, metric = "coca"))
expect("additive gap", interval(summarise(gap), "%"))
# R's pt knows noncentralities to 37.62 only: the power is integrated over the deviation instead.
detectable <- function(n, level) {
  q <- qt(level / 2, n - 1, lower.tail = FALSE)
  power <- function(d) integrate(function(s) 2 * s * (n - 1) * dchisq(s^2 * (n - 1), n - 1) *
    (pnorm(d * sqrt(n) - q * s) + pnorm(-q * s - d * sqrt(n))), 0, Inf, rel.tol = 1e-10)$value
  uniroot(function(d) power(d) - 0.8, c(0.01, 99), tol = 1e-9)$root
}
primary <- effects[effects$metric == "coca", ][1, ]
count <- nrow(losses$coca)
expect("detectable effect", sprintf(
  "vary by %.2f%% from seed to seed, so %d seeds find an effect of %.2g%%",
  primary$standard_deviation, count, detectable(count, 0.04) * primary$standard_deviation))
quit(status = as.integer(wrong > 0))
