/** Steps of a path that is walked once: each needs what the ones before it have made. */
import t, { type Test } from 'tap';

const MINUTE = 60_000;

/** STEPS=1,4 : only these, in a lab that was kept; a step finds what it needs of the others at the appliance. */
const only = process.env.STEPS?.split(',').map(Number);

/**
 * Names a step and runs it in its turn. What comes after a broken step says so instead of failing in a way that misleads.
 * @param onBroken keeps what is needed to look at the failure
 */
export function createSteps(
  onBroken: () => Promise<void>,
): (name: string, body: (t: Test) => Promise<void>) => void {
  let broken: string | undefined;
  let count = 0;
  return (name, body) => {
    if (only && !only.includes(++count)) return;
    t.test(name, { timeout: 40 * MINUTE }, async (t) => {
      if (broken) {
        t.fail(`not tried: "${broken}" failed before it`);
        return;
      }
      try {
        await body(t);
        if (!t.passing()) broken = name;
      } catch (error) {
        broken = name;
        await onBroken();
        throw error;
      }
    });
  };
}
