import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;

/** Prints 1, 2, 3, … while threads work and the garbage collector has something to do; ends when a sum is wrong. */
public class Ticker {
    public static void main(String[] arguments) throws Exception {
        AtomicLong worked = new AtomicLong();
        var pool = Executors.newFixedThreadPool(3);
        for (int i = 0; i < 3; i++) {
            pool.submit(() -> {
                while (true) {
                    Map<Integer, List<Long>> garbage = new HashMap<>();
                    for (int k = 0; k < 1000; k++) {
                        garbage.computeIfAbsent(k % 10, x -> new ArrayList<>()).add((long) k);
                    }
                    long sum = garbage.values().stream().flatMap(List::stream).mapToLong(x -> x).sum();
                    if (sum != 499500) {
                        System.exit(3);
                    }
                    worked.incrementAndGet();
                    Thread.sleep(5);
                }
            });
        }
        long before = -1;
        for (long n = 1; ; n++) {
            System.out.println(n);
            Thread.sleep(100);
            if (n % 10 == 0) {
                if (worked.get() == before) {
                    System.exit(4);
                }
                before = worked.get();
            }
        }
    }
}
