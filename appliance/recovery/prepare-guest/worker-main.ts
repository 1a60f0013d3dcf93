/** Entry point of the guest preparation's process. */
import { runPrepareWorker } from './worker.ts';

await runPrepareWorker();
